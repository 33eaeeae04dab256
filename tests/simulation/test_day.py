"""Whoever was away takes part again, without a person: a day of devices that crash, sleep, renew and enrol anew."""

from __future__ import annotations

from typing import Any

import pytest

from he_client import HushSumClient, resend
from he_client.submission import Submission
from he_protocol.messages import SignedUpdate
from he_protocol.task import Task

from . import day
from .attendance import Attendance
from .invariants import Violation
from .mutants import Mutant, Patch

HOURS = 3.0
"""A morning: half of the hours that a credential, and all that an update lives."""


@pytest.mark.long
def test_who_comes_back_in_the_morning_takes_part_again() -> None:
    counts = day.live(2, HOURS).counts
    assert counts["rounds published"]
    assert counts["crashed"]
    assert counts["updates that waited for a run"]


@pytest.mark.long
def test_who_comes_back_takes_part_again_within_two_rounds_all_day() -> None:
    counts = day.live(0).counts
    happened = ("crashed", "sleeps", "credentials renewed", "enrolments anew", "wrong clocks")
    assert min(counts[what] for what in happened) > 5, counts
    assert counts["rounds published"] > 30


def test_attendance_counts_rounds_from_the_return_on() -> None:
    attendance = Attendance()
    attendance.settle(1, 100.0, well=True)
    attendance.published(1, 99.0, {})  # opened before: it does not count
    attendance.published(2, 100.0, {1: 99.0})  # what it had sent before does not count either
    attendance.published(3, 110.0, {1: 112.0})
    assert attendance.returns == {1: 1}
    attendance.check_all([1])
    attendance.published(4, 120.0, {})
    attendance.settle(1, 125.0, well=False)
    attendance.settle(1, 130.0, well=True)
    attendance.published(5, 130.0, {})
    with pytest.raises(Violation, match="is not in rounds"):
        attendance.published(6, 140.0, {2: 141.0})


def test_who_never_comes_back_is_missed_at_the_end() -> None:
    attendance = Attendance()
    attendance.settle(1, 100.0, well=True)
    for devices in ([1], [2]):
        with pytest.raises(Violation, match="at the end"):
            attendance.check_all(devices)


def old_credentials(patch: Patch) -> None:
    renewed = resend.renewed

    def kept(task: Task, head: SignedUpdate, *rest: Any) -> SignedUpdate:
        return SignedUpdate(renewed(task, head, *rest).header, head.credential)

    patch.setattr(resend, "renewed", kept)


def stopped(patch: Patch) -> None:
    async def resume(self: HushSumClient, task: Task) -> list[Submission]:
        return [await self.upload(task, waiting) for waiting in self._spool(task).pending()]

    patch.setattr(HushSumClient, "resume", resume)


def unasked(patch: Patch) -> None:
    async def welcome(*_: Any) -> bool:
        return True

    patch.setattr(HushSumClient, "_welcome", welcome)


MUTANTS = (
    Mutant("unasked", "a device judges what waits by a clock that may be wrong", unasked),
    Mutant("stopped", "the first refusal of an update that waits ends the run", stopped),
    Mutant("old credentials", "an update that waits keeps its old credential", old_credentials),
)
DAYS, HALF = 4, 12.0
"""So many days are tried, the first half of each."""


@pytest.mark.parametrize("mutant", [pytest.param(m, id=m.name, marks=pytest.mark.long) for m in MUTANTS])
def test_a_planted_bug_of_devices_that_come_back_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    with pytest.raises(Violation):
        _try_days()


def _try_days() -> None:
    for seed in range(DAYS):
        day.live(seed, HALF)
