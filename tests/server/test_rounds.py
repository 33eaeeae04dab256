"""The pure rules of rounds, and what time does to them."""

from __future__ import annotations

from typing import get_args

import pytest

from he_protocol import problems
from he_protocol.committee import parse_committee
from he_protocol.documents import RoundState
from he_protocol.errors import ProblemError
from he_server.rules.rounds import (
    TERMINAL,
    TRANSITIONS,
    at_deadline,
    check_transition,
    combining_due,
    enough_shares,
    fold_due,
    merge_buckets,
    stage_of,
)
from he_server.rules.updates import check_base_version

from .conftest import both
from .world import World

ALLOWED = {
    ("open", "closed"),
    ("open", "failed"),
    ("closed", "opening"),
    ("closed", "failed"),
    ("opening", "published"),
    ("opening", "failed"),
}
STATES: tuple[RoundState, ...] = get_args(RoundState)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_the_table_of_transitions(before: RoundState, after: RoundState) -> None:
    if (before, after) in ALLOWED:
        check_transition(before, after)
        return
    with pytest.raises(ProblemError) as caught:
        check_transition(before, after)
    assert caught.value.problem == problems.WRONG_STATE


def test_terminal_states() -> None:
    assert frozenset({"published", "failed"}) == TERMINAL
    assert set(TRANSITIONS) == set(STATES)


@pytest.mark.parametrize(
    ("updates", "deadline", "now", "expected"),
    [(0, 0.0, 9e9, "wait"), (1, 10.0, 9.9, "wait"), (1, 10.0, 10.0, "fail"), (2, 10.0, 10.0, "close")],
)
def test_at_deadline(updates: int, deadline: float, now: float, expected: str) -> None:
    assert at_deadline(updates, 2, deadline, now) == expected


@pytest.mark.parametrize(
    ("waiting", "state", "waited", "filled", "expected"),
    [
        ({}, "closed", 9.0, 0.0, None),
        ({}, "open", 9.0, 0.0, None),
        ({0: 7}, "open", 0.0, 0.0, None),
        ({0: 7}, "closed", 0.0, 0.0, 0),
        ({0: 3, 1: 5}, "open", 0.0, 0.0, 1),
        ({0: 1}, "open", 2.0, 0.0, 0),
        ({2: 1}, "open", 0.0, 0.5, 2),
    ],
)
def test_fold_due(
    waiting: dict[int, int], state: RoundState, waited: float, filled: float, expected: int | None
) -> None:
    assert fold_due(waiting, state, waited=waited, filled=filled) == expected


@pytest.mark.parametrize(
    ("sizes", "min_clients", "expected"),
    [
        ([5], 2, 1),
        ([2, 2, 2], 2, 3),
        ([2, 2, 1], 2, 2),
        ([1, 1, 1, 1, 0, 0], 2, 2),
        ([1, 1, 1, 0, 0, 0], 3, 1),
        ([3, 3, 3, 3], 6, 2),
        ([2, 0, 0], 2, 1),
    ],
)
def test_merging_buckets(sizes: list[int], min_clients: int, expected: int) -> None:
    k = merge_buckets(sizes, min_clients)
    assert k == expected

    def smallest(count: int) -> int:
        return min(sum(size for b, size in enumerate(sizes) if b % count == final) for final in range(count))

    assert smallest(k) >= min_clients
    assert all(smallest(larger) < min_clients for larger in range(k + 1, len(sizes) + 1))


@pytest.mark.parametrize(
    ("numbers", "shares", "tried", "late", "expected"),
    [
        ("2/4/3", 1, 0, True, False),  # time alone opens nothing, and ends nothing
        ("2/4/3", 2, 0, False, True),
        ("2/4/3", 2, 2, True, False),  # did not open: a third may know better, and nobody gives up before it came
        ("2/4/3", 3, 2, False, True),
        ("2/4/3", 3, 3, False, False),
        ("2/4/3", 3, 3, True, True),  # as many as must vote: whoever is still away may be away for ever
    ],
)
def test_combining_due(numbers: str, shares: int, tried: int, late: bool, expected: bool) -> None:
    assert combining_due(parse_committee(numbers), shares, tried, late=late) is expected


@pytest.mark.parametrize(
    ("numbers", "shares", "whole", "binding", "late", "expected"),
    [
        ("2/4/3", 2, 2, True, False, False),
        ("2/4/3", 3, 3, True, False, True),  # one of them lies at most: what three do not open, nobody opens
        ("2/4/3", 3, 2, True, False, False),  # one left a bucket closed, and the fourth may open it
        ("2/4/3", 3, 3, False, False, False),  # where shares prove nothing, three that agree are wanted
        ("2/4/3", 4, 3, False, False, True),
        ("2/4/3", 3, 2, False, True, True),
        ("3/7/5", 4, 4, True, True, False),
        ("3/7/5", 5, 5, True, False, True),
        ("2/3/2", 2, 2, True, False, True),
        ("2/3/2", 2, 2, False, False, False),
    ],
)
def test_enough_shares(numbers: str, shares: int, whole: int, binding: bool, late: bool, expected: bool) -> None:
    assert enough_shares(parse_committee(numbers), shares, whole, binding=binding, late=late) is expected


@pytest.mark.parametrize(
    ("state", "votes", "stage"),
    [("closed", 0, "screen"), ("opening", 0, "vote"), ("opening", 2, "vote"), ("opening", 3, "release")],
)
def test_stages(state: RoundState, votes: int, stage: str) -> None:
    assert stage_of(state, votes, agreement=3) == stage


@pytest.mark.parametrize(
    ("base", "waiting", "fits"),
    [
        (2, 0, False),
        (3, 0, True),
        (5, 0, True),
        (6, 0, False),
        (3, 1, False),
        (4, 1, True),
        (4, 2, False),
        (5, 2, True),
        (5, 9, True),
    ],
)
def test_base_version(base: int, waiting: int, fits: bool) -> None:
    if fits:
        check_base_version(base, 5, 2, waiting)
        return
    with pytest.raises(ProblemError) as caught:
        check_base_version(base, 5, 2, waiting)
    assert caught.value.problem == problems.STALE_UPDATE
    assert "fetch version 5" in str(caught.value)


async def test_an_update_that_will_be_too_old_when_its_round_is_opened_is_refused_at_once(world: World) -> None:
    """Staleness 1, version 1, and a round that will publish version 2: version 0 is too old for the one after it."""
    await world.fill(3)
    await world.open(1)
    await world.fill(3, base_version=1)
    late = world.person("late", "client")
    refused = await world.put(late, world.upload(late, base_version=0))
    assert await world.problem(refused) == problems.STALE_UPDATE
    assert (await world.put(late, world.upload(late, base_version=1))).status == 201


@both
async def test_an_empty_round_waits_for_ever(world: World) -> None:
    world.clock.now += 1e6
    assert await world.work() == 0
    status = await world.round(1)
    assert (status.state, status.deadline) == ("open", 0)


@both
async def test_the_first_update_sets_the_deadline_and_the_round_closes_then(world: World) -> None:
    world.clock.now += 1000
    await world.fill(1)
    deadline = (await world.round(1)).deadline
    assert deadline == world.clock.now + world.task.config.rounds.collect_seconds
    world.clock.now += 10
    await world.fill(1, first=1)
    assert (await world.round(1)).deadline == deadline
    world.clock.now = deadline - 0.5
    assert await world.work() == 1  # folded
    world.clock.now = deadline
    await world.form(1)
    status = await world.round(1)
    assert (status.state, status.updates) == ("opening", 2)
    assert status.seconds["collect"] == world.task.config.rounds.collect_seconds
    assert (await world.round(2)).state == "open"


@both
async def test_too_few_clients(world: World) -> None:
    await world.fill(1)
    world.clock.now += world.task.config.rounds.collect_seconds
    await world.work()
    status = await world.round(1)
    assert status.state == "failed"
    assert status.failure is not None
    assert status.failure.type == problems.TOO_FEW_CLIENTS.urn
    assert "1 of at least 2 clients came" in status.failure.detail
    assert (await world.round(2)).state == "open"
    assert list((world.server.settings.data_dir / "blobs" / "updates").iterdir()) == []


async def test_the_next_round_collects_while_one_is_opened(world: World) -> None:
    """And waits for its turn: rounds are opened one after the other."""
    await world.fill(3)
    await world.form(1)
    await world.fill(3, first=3)
    await world.work()
    assert [(await world.round(n)).state for n in (1, 2, 3)] == ["opening", "closed", "open"]
    assert [(await world.round(n)).opening for n in (1, 2)] == [1, 0]
    await world.open(1)
    await world.open(2)
    assert [(await world.round(n)).version for n in (1, 2)] == [1, 2]
    assert [(await world.round(n)).opening for n in (1, 2)] == [1, 2]


async def test_a_majority_names_the_holder_that_lies(empty_world: World) -> None:
    from .world import half_a_unit

    world = empty_world
    await world.add_task_of_four()
    await world.fill(3, 200)
    await world.certify(1)
    lie: dict[int | tuple[int, int], bytes] = {
        part: half_a_unit(world.task) for part in world.task.sharing.subshares_of(0)
    }
    await world.put_share(0, 1, await world.share(0, 1, lie))
    await world.put_share(1, 1, await world.share(1, 1))
    await world.work()
    assert (await world.round(1)).state == "opening"
    await world.open(1, (2,))
    assert (await world.round(1)).state == "opening"  # two that agree prove nothing: a liar of this scheme finds one
    await world.open(1, (3,))
    assert (await world.round(1)).state == "published"
