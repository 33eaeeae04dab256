"""Nothing lost, nothing repeated, nothing revealed, whatever crashes, hangs, breaks or lies."""

from __future__ import annotations

import pytest

from .machine import Fate
from .operations import Operation, Schedule, draw, run

SCHEDULES = 80
SLICES = 3


@pytest.mark.parametrize("part", range(SLICES))
def test_every_invariant_holds_in_every_schedule(part: int) -> None:
    for number in range(part, SCHEDULES, SLICES):
        run(draw(number))


def test_a_schedule_has_one_outcome() -> None:
    for number in range(6):
        assert run(draw(number)).trace == run(draw(number)).trace


def test_rounds_are_published_where_nothing_happens() -> None:
    rounds = 2 * (Operation("gather"), Operation("open"))
    assert run(Schedule(0, rounds)).counts["rounds published"] == 2


def test_a_power_cut_stops_the_machine_that_reaches_its_point() -> None:
    record = run(Schedule(0, (Operation("gather", fate=Fate("power", 100)),)))
    assert record.counts["crashed"] == 1
