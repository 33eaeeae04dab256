"""Group commit: calls that come while a transaction is under way share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from he_protocol.problems import Refusal

T = TypeVar("T")
R = TypeVar("R")
MOST = 128
"""Calls in one transaction."""


class Grouped(Generic[T, R]):
    """`work` takes the items of several calls and answers each, in order, or only the first few of them.

    Whoever finds no transaction under way runs the next one, for all that wait; if it is cancelled or fails,
    nothing was done, and the next of them tries.
    """

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[Sequence[R | Refusal]]]) -> None:
        self._work = work
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[T, list[R | Refusal]]] = []

    async def __call__(self, item: T) -> R:
        """Raises what `work` raises, or the refusal that is this item's answer."""
        call: tuple[T, list[R | Refusal]] = (item, [])
        self._waiting.append(call)
        try:
            async with self._turn:
                while not call[1]:
                    await self._run()
        finally:
            if call in self._waiting:
                self._waiting.remove(call)
        answer = call[1][0]
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def _run(self) -> None:
        calls = self._waiting[:MOST]
        answers = await self._work([item for item, _ in calls])
        for (_, answered), answer in zip(calls, answers, strict=False):
            answered.append(answer)
        self._waiting = [call for call in self._waiting if not call[1]]
