"""A cache for an answer that is costly and open to strangers: it is computed at most once in a given time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class Cached(Generic[R]):
    """The result of `work`, at most `seconds` old. One call runs at a time; errors are not cached."""

    def __init__(
        self, work: Callable[[], Awaitable[R]], seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._monotonic = monotonic
        self._turn = asyncio.Lock()
        self._found: list[R] = []
        self._at = 0.0

    async def __call__(self) -> R:
        async with self._turn:
            if not self._found or self._monotonic() - self._at >= self._seconds:
                self._found = [await self._work()]
                self._at = self._monotonic()
            return self._found[0]
