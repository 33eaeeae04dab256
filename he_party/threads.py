"""Work of a user's in a thread that nobody waits for: a program that is interrupted ends at once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

NAME = "user's work"


async def abandonable(work: Callable[[], T]) -> T:
    """What `work` answers or raises. Cancelled, it is left to itself: a thread cannot be stopped."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, StopIteration):  # a future cannot hold it
            future.set_exception(RuntimeError(f"StopIteration: {error}"))
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # for who waits to see
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=NAME, daemon=True).start()
    return await future


def abandoned() -> bool:
    """Whether such work goes on although its loop has ended."""
    return any(thread.name == NAME for thread in threading.enumerate())
