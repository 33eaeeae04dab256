"""Group commit: who shares a transaction with whom, and what becomes of them when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from he_protocol.errors import ProblemError
from he_protocol.problems import STALE_UPDATE
from he_server.services import group_commit
from he_server.services.group_commit import GroupCommit, ThreadBatcher


class Work:
    """Squares numbers, in batches that it remembers; goes on when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.most = 100
        self.failures = 0

    async def __call__(self, items: Sequence[int]) -> Sequence[int | ProblemError]:
        self.batches.append(list(items))
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no database")
        return [item * item if item >= 0 else ProblemError(STALE_UPDATE, "negative") for item in items[: self.most]]


async def _waiting(call: GroupCommit[int, int], items: Sequence[int]) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(call(item)) for item in items]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_those_who_come_meanwhile_share_the_next_run() -> None:
    work = Work()
    tasks = await _waiting(GroupCommit(work), [1, 2, 3, 4])
    work.go.set()
    assert await asyncio.gather(*tasks) == [1, 4, 9, 16]
    assert work.batches in ([[1, 2, 3, 4]], [[1], [2, 3, 4]])


async def test_a_run_may_answer_the_first_few_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MOST", 3)
    work = Work()
    work.most = 2
    work.go.set()
    assert await asyncio.gather(*await _waiting(GroupCommit(work), range(7))) == [i * i for i in range(7)]
    assert max(map(len, work.batches)) <= 3


async def test_a_refusal_is_its_own_items_only() -> None:
    work = Work()
    work.go.set()
    first, refused, last = await asyncio.gather(*await _waiting(GroupCommit(work), [2, -1, 3]), return_exceptions=True)
    assert (first, last) == (4, 9)
    assert isinstance(refused, ProblemError)


async def test_when_the_one_who_runs_it_is_cancelled_another_does() -> None:
    work = Work()
    tasks = await _waiting(GroupCommit(work), [1, 2, 3])
    tasks[0].cancel()
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*tasks[1:]) == [4, 9]
    assert 1 not in work.batches[-1]


async def test_a_failed_run_is_tried_again_for_each() -> None:
    """Nobody is told of somebody else's failure who could still succeed."""
    work = Work()
    work.failures = 1
    work.go.set()
    outcomes = await asyncio.gather(*await _waiting(GroupCommit(work), [1, 2, 3]), return_exceptions=True)
    assert [isinstance(outcome, OSError) for outcome in outcomes].count(True) == 1
    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == [4, 9]


async def test_one_that_is_cancelled_as_its_turn_comes_hands_it_on() -> None:
    go = asyncio.Event()

    async def work(items: Sequence[int]) -> list[int | ProblemError]:
        if 1 in items:
            await go.wait()
            asyncio.get_running_loop().call_soon(second.cancel)  # after it is called, before it runs
        return [item * item for item in items[:1]]

    call = GroupCommit(work)
    first, second, third = await _waiting(call, [1, 2, 3])
    go.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(first, third) == [1, 9]
        assert await call(4) == 16
    assert second.cancelled()


async def test_calls_that_come_meanwhile_go_to_the_thread_together() -> None:
    sizes = []

    async def thread(work: Callable[[], list[object]]) -> list[object]:
        await asyncio.sleep(0)
        answers = await asyncio.to_thread(work)
        sizes.append(len(answers))
        return answers

    def square(number: int) -> int:
        if number < 0:
            raise ProblemError(STALE_UPDATE, "negative")
        return number * number

    together = ThreadBatcher(thread)
    outcomes = await asyncio.gather(*(together(partial(square, n)) for n in (1, 2, -1, 3)), return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, BaseException)] == [1, 4, 9]
    assert isinstance(outcomes[2], ProblemError)
    assert sizes == [1, 3]
