"""Group commit: calls that come while a transaction is under way share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from he_protocol.errors import ProblemError

T = TypeVar("T")
R = TypeVar("R")
MOST = 128
"""Calls in one transaction."""


@dataclass(eq=False)
class _Call(Generic[T, R]):
    """A call that waits for its answer, or for its turn to run the next transaction.

    Compared by identity: comparing items could mean comparing all their bytes.
    """

    item: T
    leads: bool
    woken: asyncio.Future[None]
    answers: list[R | ProblemError] = field(default_factory=list)

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class GroupCommit(Generic[T, R]):
    """Runs `work` on the items of several calls at once; it answers them in order, all or only the first few.

    A call that finds no transaction under way runs the next one for all that wait. If that call is cancelled or fails,
    nothing was done, and the next waiting call tries.
    """

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[Sequence[R | ProblemError]]]) -> None:
        self._work = work
        self._led = False
        self._waiting: list[_Call[T, R]] = []

    async def __call__(self, item: T) -> R:
        """Raises what `work` raises, or the refusal that is this item's answer."""
        call: _Call[T, R] = _Call(item, not self._led, asyncio.get_running_loop().create_future())
        self._led = True
        self._waiting.append(call)
        try:
            if not call.leads:
                await call.woken
            while not call.answers:
                await self._run()
        finally:
            if call in self._waiting:
                self._waiting.remove(call)
            if call.leads:
                self._hand_over()
        answer = call.answers[0]
        if isinstance(answer, ProblemError):
            raise answer
        return answer

    async def _run(self) -> None:
        calls = self._waiting[:MOST]
        answers = await self._work([call.item for call in calls])
        for call, answer in zip(calls, answers, strict=False):
            call.answers.append(answer)
            call.wake()
        self._waiting = [call for call in self._waiting if not call.answers]

    def _hand_over(self) -> None:
        """Wake the next call that was not cancelled, if there is one."""
        successor = next((call for call in self._waiting if not call.woken.done()), None)
        self._led = successor is not None
        if successor is not None:
            successor.leads = True
            successor.wake()


class ThreadBatcher:
    """Batches short concurrent calls into one hop to a worker thread: a hop for each would cost more than the calls."""

    def __init__(self, thread: Callable[[Callable[[], list[Any]]], Awaitable[list[Any]]]) -> None:
        """`thread` runs something in a thread."""
        self._group_commit: GroupCommit[Callable[[], Any], Any] = GroupCommit(
            lambda calls: thread(lambda: _each(calls))
        )

    async def __call__(self, call: Callable[[], R]) -> R:
        """Returns what `call` returns and raises what it raises."""
        answer: R = await self._group_commit(call)
        return answer


def _each(calls: Sequence[Callable[[], R]]) -> list[R | ProblemError]:
    answers: list[R | ProblemError] = []
    for call in calls:
        try:
            answers.append(call())
        except ProblemError as refusal:
            answers.append(refusal)
    return answers
