"""Work that is not stopped halfway: SQLAlchemy throws a connection away whose statement was cancelled, and SQLite keeps
that connection's transaction, with its lock on the whole database, as long as a cursor of it is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def to_its_end(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same coroutine function; who is cancelled while it waits for it ends after it. It must end soon by itself."""

    @wraps(work)
    async def waited_for(*args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.ensure_future(work(*args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    return waited_for
