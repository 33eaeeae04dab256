"""A read for everybody who asks at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class SharedRead(Generic[R]):
    """The results of `read`, one call at a time. Each is for all who asked before it began, and for nobody later: so
    nobody is answered with what was true before the question."""

    def __init__(self, read: Callable[[], Awaitable[R]]) -> None:
        self._read = read
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[R] | None = None

    async def __call__(self) -> R:
        """Raises what `read` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> R:
        async with self._turn:
            self._next = None
            return await self._read()
