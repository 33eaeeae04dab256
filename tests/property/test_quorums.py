"""Up to f lying holders and a lying server, over all orders in which holders see manifests: no two certificates share
an update or an opening number, and no more sums open than the plan says. With one liar more the same search finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from he_holder import rules as checks
from he_holder.ledger import Ledger
from he_holder.rules import RELEASING, VOTING, Rule
from he_protocol.committee import parse_committee
from he_protocol.errors import ProblemError
from tests.property.quorums import (
    COMMITTEES,
    LEAST,
    OPENINGS,
    Act,
    Asked,
    Court,
    Step,
    committee_world,
    conflicts,
    ledgers,
)
from tests.support.rules import without

Schedule = tuple[list[Asked], list[Step]]
ACTS: tuple[Act, ...] = ("vote", "vote", "release", "lost vote")
MANIFESTS = st.builds(
    Asked,
    st.integers(1, OPENINGS + 1),
    st.frozensets(st.integers(0, 4), min_size=LEAST, max_size=3),
)
SEARCH = settings(max_examples=1500, database=None, derandomize=True, phases=[Phase.generate])


@st.composite
def schedules(draw: st.DrawFn, text: str, liars: int) -> Schedule:
    """Manifests, and who is asked for what about which of them: others are away."""
    shown = draw(st.lists(MANIFESTS, min_size=2, max_size=4))
    honest = st.integers(liars, parse_committee(text).holders - 1)
    steps = st.builds(Step, st.sampled_from(ACTS), honest, st.integers(0, len(shown) - 1))
    return shown, draw(st.lists(steps, min_size=6, max_size=30))


def played(text: str, liars: int, schedule: Schedule, **rules: Any) -> Court:
    court = Court(text, liars, **rules)
    asyncio.run(court.play(*schedule))
    return court


def broken(court: Court, shown: Sequence[Asked]) -> bool:
    """Whether the server has what it must not have."""
    opened = court.opened(shown)
    return bool(conflicts(court.certified(shown)) or conflicts(opened)) or len(opened) > OPENINGS


@pytest.mark.parametrize("text", COMMITTEES)
def test_up_to_f_liars_gain_nothing_in_any_schedule(text: str) -> None:
    f = parse_committee(text).colluders

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, f).flatmap(lambda liars: st.tuples(st.just(liars), schedules(text, liars))))
    def holds(drawn: tuple[int, Schedule]) -> None:
        liars, schedule = drawn
        court, shown = played(text, liars, schedule), schedule[0]
        assert not broken(court, shown)
        assert set(court.opened(shown)) <= set(court.certified(shown))
        assert all(asked.number <= OPENINGS for asked in court.certified(shown))

    holds()


@pytest.mark.parametrize("text", COMMITTEES)
def test_with_one_liar_more_the_same_search_finds_two_certificates(text: str) -> None:
    liars = parse_committee(text).colluders + 1
    find(schedules(text, liars), lambda s: bool(conflicts(played(text, liars, s).certified(s[0]))), settings=SEARCH)


@pytest.mark.parametrize(
    "rule",
    [checks.certified, checks.number_unused, checks.updates_fresh, checks.number_in_plan],
    ids=lambda rule: rule.__name__,
)
def test_without_one_rule_the_same_search_finds_an_attack(rule: Rule) -> None:
    """With f liars of 2/4/3: votes that bind nothing, or shares that need none."""
    text, liars, off = "2/4/3", 1, {rule, checks.bases_fresh} if rule is checks.updates_fresh else {rule}
    rules = {
        "voting": without(*(one for one in VOTING if one in off), rules=VOTING),
        "releasing": without(*(one for one in RELEASING if one in off), rules=RELEASING),
    }

    def attacked(schedule: Schedule) -> bool:
        shown = schedule[0]
        court = played(text, liars, schedule, **rules)
        return broken(court, shown) or any(asked.number > OPENINGS for asked in court.opened(shown))

    find(schedules(text, liars), attacked, settings=SEARCH)


PAIRS = {
    "one number, nothing shared": (Asked(1, frozenset({0, 1})), Asked(1, frozenset({2, 3}))),
    "one number, one client less": (Asked(1, frozenset({0, 1, 2})), Asked(1, frozenset({0, 1}))),
    "two numbers, one client less": (Asked(1, frozenset({0, 1, 2})), Asked(2, frozenset({0, 1}))),
    "two numbers in the other order": (Asked(2, frozenset({0, 1, 2})), Asked(1, frozenset({0, 1}))),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=[name.replace(" ", "_") for name in PAIRS])
@pytest.mark.parametrize("text", COMMITTEES)
@pytest.mark.parametrize("more", [0, 1], ids=["f_liars", "one_more"])
def test_every_way_to_show_a_pair_of_manifests(text: str, pair: tuple[Asked, Asked], more: int) -> None:
    """Honest holders are alike: what counts is how many see the first first, the second first, or are away.

    All that are not away are then asked for everything else, and so are those that were away, in the end.
    """
    committee = parse_committee(text)
    liars = committee.colluders + more
    honest = range(liars, committee.holders)
    found, open_sums = 0, 0
    for firsts in combinations_with_replacement((0, 1, None), len(honest)):
        first = [Step("vote", h, at) for h, at in zip(honest, firsts, strict=True) if at is not None]
        then = [Step(act, h, at) for act in ("vote", "release") for at in (0, 1) for h in honest]
        early = [Step("release", h, at) for at in (0, 1) for h in honest]
        for steps in (first + then, first + early + then, [*first, *reversed(then)]):
            court = played(text, liars, (list(pair), steps))
            found += bool(conflicts(court.certified(pair)))
            open_sums = max(open_sums, len(court.opened(pair)))
    assert bool(found) == bool(more)
    assert open_sums == 1 + more  # one of the two always gets there: nothing is wedged by the other


@pytest.mark.parametrize("text", COMMITTEES)
def test_whoever_is_away_in_turn_no_more_sums_open_than_the_plan_says(text: str) -> None:
    """Each round another `away` holders are missing; the server numbers rounds as it likes."""
    committee = parse_committee(text)
    for liars in range(committee.colluders + 1):
        rounds = [Asked(1 + i % (OPENINGS + 2), frozenset(pair)) for i, pair in enumerate(combinations(range(5), 2))]
        court, honest = Court(text, liars), range(liars, committee.holders)
        steps = []
        for at in range(len(rounds)):
            there = [h for i, h in enumerate(honest) if (i + at) % len(honest) >= committee.away]
            steps += [Step(act, h, at) for act in ("vote", "release") for h in there]
        asyncio.run(court.play(rounds, steps))
        assert 0 < len(court.opened(rounds)) <= OPENINGS
        assert not conflicts(court.opened(rounds))


@pytest.mark.parametrize("text", COMMITTEES)
def test_real_ledgers_come_to_the_same_conclusions(text: str) -> None:
    f = parse_committee(text).colluders

    @settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
    @given(schedules(text, f))
    def same(schedule: Schedule) -> None:
        court = asyncio.run(with_ledgers(text, f, schedule))
        notes = played(text, f, schedule)
        assert not broken(court, schedule[0])
        assert court.votes == notes.votes
        assert court.released == notes.released

    same()


async def with_ledgers(text: str, liars: int, schedule: Schedule) -> Court:
    holders = parse_committee(text).holders - liars
    world, _ = committee_world(text)
    with TemporaryDirectory() as folder:
        opened = [await Ledger.open(Path(folder) / str(i) / "ledger.db") for i in range(holders)]
        try:
            for ledger in opened:
                await ledger.join(world.task, "http://server", 0.0)
            court = Court(text, liars, ledgers(opened))
            await court.play(*schedule)
        finally:
            for ledger in opened:
                await ledger.close()
    return court


def test_a_holder_that_was_away_releases_on_a_certificate_and_is_then_bound_by_it() -> None:
    first, second = PAIRS["two numbers, one client less"]
    court = Court("2/4/3", 0)

    async def run() -> None:
        for holder in (0, 1, 2):
            await court.step("vote", holder, first)
        await court.step("release", 3, first)
        with pytest.raises(ProblemError, match="update-opened-before"):
            await court.step("vote", 3, second)

    asyncio.run(run())
