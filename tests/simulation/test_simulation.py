"""Nothing lost, nothing repeated, nothing revealed, whatever crashes, hangs, breaks or lies."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from . import world
from .invariants import contained
from .machine import Fate
from .mutants import MUTANTS, Mutant, hunt
from .operations import run
from .schedules import Operation, Schedule, explore
from .soak import soak
from .world import CLIENTS

SCHEDULES = 6
"""`make test-long` runs many more outside of pytest, on all cores: tests.simulation.soak."""
QUICK = {"receipt before row", "decided late"}
"""Planted bugs that almost any schedule shows; `make mutants` hunts all of them."""


def test_every_invariant_holds_in_every_schedule() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # in a large old process a schedule takes twice as long
        _, failure = pool.submit(soak, (0, SCHEDULES)).result()
    assert not failure, failure


def test_a_schedule_has_one_outcome() -> None:
    explore(lambda schedule: _same(run(schedule).trace, run(schedule).trace), examples=2, number=0)


def _same(one: list[str], other: list[str]) -> None:
    assert one == other


def test_a_failure_is_told_by_the_simplest_schedule_that_was_found() -> None:
    tried = list[Schedule]()

    def check(schedule: Schedule) -> None:
        tried.append(schedule)
        kinds = [operation.kind for operation in schedule.operations]
        if kinds.count("open") > 1 and "lie" in kinds:
            raise AssertionError(f"{len(kinds)} {schedule}")

    with pytest.raises(AssertionError, match=r"^3 ") as caught:
        explore(check, 200, 0)
    said = str(caught.value)
    assert "traitor: None" in said
    assert said.count("kind='none'") == 3
    with pytest.raises(AssertionError) as first:
        explore(check, 200, 0, shrink=False)
    assert str(tried[-1]) in str(first.value)


def test_rounds_are_published_where_nothing_happens() -> None:
    rounds = 2 * (Operation("gather"), Operation("open"))
    assert run(Schedule(0, rounds)).counts["rounds published"] == 2


def test_one_key_holder_is_away_or_lies_and_rounds_go_on() -> None:
    rounds = 2 * (Operation("gather"), Operation("open"))
    assert run(Schedule(0, rounds, traitor=0)).counts["rounds published"] == 2


def test_updates_that_come_too_late_or_cannot_be_opened_are_left_out() -> None:
    late = run(Schedule(0, (Operation("straggle"), Operation("open"), Operation("gather"))))
    assert late.counts["rounds published"]
    assert late.counts["updates left out"] == CLIENTS // 2
    spoilt = (Operation("spoil", pick=0xFF), Operation("gather"), Operation("open"))
    record = run(Schedule(0, spoilt))
    assert record.counts["rounds published"] == record.counts["updates left out"] == 1


def test_the_power_goes_twice_while_a_ledger_is_written() -> None:
    """The second time, the journal that the first one had left on the disk has been played back and removed."""
    first = Operation("open", who=1, pick=183, fate=Fate("power", 43))
    run(Schedule(230, (first, Operation("lie", pick=182, fate=Fate("power", 2))), traitor=0))


def test_one_envelope_that_does_not_open_and_a_liar_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shares came: one leaves the bucket closed, one is wrong. The fourth one opens it."""
    monkeypatch.setattr(world, "MANNERS", ("spoils",))
    operations = (Operation("spoil"), Operation("gather"), Operation("open", who=2))
    record = run(Schedule(0, operations, traitor=3))
    assert record.counts["rounds published"] == 1


def test_the_task_goes_on_after_what_was_given_up_or_lost() -> None:
    """All devices were in the round; without DP noise they send once on a version."""
    voted = Operation("open", pick=15)
    record = run(Schedule(0, (voted, Operation("abandon"))))
    assert (record.counts["rounds failed"], record.counts["rounds published"]) == (1, 1)
    first = (Operation("open"), Operation("restore"), Operation("open"))  # back to before any sum
    record = run(Schedule(0, first))
    assert record.restored
    assert record.counts["rounds published"]


def test_no_round_goes_beyond_the_plan() -> None:
    record = run(Schedule(0, 5 * (Operation("open"),)))
    assert (record.counts["rounds published"], record.counts["rounds failed"]) == (4, 0)


def test_a_power_cut_stops_the_machine_that_reaches_its_point() -> None:
    record = run(Schedule(0, (Operation("gather", fate=Fate("power", 100)),)))
    assert record.counts["crashed"] == 1


def test_what_thaws_may_wait_for_what_is_frozen() -> None:
    """The sweep makes the engine's first connection, which all others wait for; found by the soak run."""
    frozen = Fate("freeze", 0)
    schedule = (Operation("gather", fate=frozen), Operation("sweep", fate=frozen), Operation("thaw"))
    assert run(Schedule(0, schedule)).counts["frozen"] == 2


def test_an_epoch_begins_once_when_two_begin_it() -> None:
    schedule = (Operation("rotate", fate=Fate("freeze", 0)), Operation("rotate"), Operation("gather"))
    assert run(Schedule(0, schedule)).acknowledged


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK], ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    found = hunt(mutant, limit=60)
    assert found.invariant, found.error


def test_a_secret_is_found_wherever_it_is() -> None:
    secrets = [b"\0\0\1\0\0", b"abcd", b"\0\0\0\0"]
    assert set(contained(secrets, b"xx\0\0\1\0\0abc")) == {secrets[0]}
    assert set(contained(secrets, b"abcd\0\0\0\0")) == {secrets[1], secrets[2]}
    assert not set(contained(secrets, b"\0\0\1\0abc"))
