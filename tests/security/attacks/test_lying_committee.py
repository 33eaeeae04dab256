"""A server and up to f key holders that collude: what they read when holders need no certificate, or no numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from he_holder import rules as checks
from he_holder.ledger import Ledger
from he_holder.request import OpeningRequest
from he_holder.rules import RELEASING, VOTING, Rule
from he_protocol.committee import parse_committee
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_CERTIFIED
from tests.property.quorums import OPENINGS, Asked, Court, Step
from tests.support.openings import Sent, ask, certify, combine, send_kahe, shares
from tests.support.parties import World, random_integers
from tests.support.rules import without

D = 300


def world_of(text: str) -> World:
    made = parse_committee(text)
    plan = {"threshold": made.threshold, "agreement": made.agreement}
    return World(made.holders, plan | {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0}, (TensorSpec("w", (D,)),))


@asynccontextmanager
async def ledgers(world: World, folder: Path) -> AsyncIterator[list[Ledger]]:
    async with AsyncExitStack() as stack:
        opened = []
        for index in range(world.holders):
            ledger = await Ledger.open(folder / str(index) / "ledger.db")
            stack.push_async_callback(ledger.close)
            await ledger.join(world.task, "http://server", 0.0)
            opened.append(ledger)
        yield opened


async def released(
    world: World, books: list[Ledger], request: OpeningRequest, honest: Sequence[int], rules: tuple[Rule, ...]
) -> list[int]:
    """The honest holders that release their shares. Raises the first refusal."""
    for holder in honest:
        await books[holder].decide(request, rules)
    return list(honest)


@pytest.mark.parametrize("guarded", [False, True], ids=["off", "on"])
@pytest.mark.parametrize("text", ["2/4/3", "3/5/4", "3/7/5"])
async def test_two_overlapping_manifests_through_other_holders(tmp_path: Path, text: str, guarded: bool) -> None:
    """With the victim to some honest holders, without it to others; the colluders vote for both and release both."""
    world, committee = world_of(text), parse_committee(text)
    f = committee.colluders
    colluders, honest = list(range(f)), list(range(f, committee.holders))
    some, others = honest[: committee.threshold - f], honest[committee.threshold - f :]
    victim = send_kahe(world, "victim", random_integers(D, 0, 700))
    crowd = [send_kahe(world, f"client-{i}", random_integers(D, i, 700)) for i in range(1, 4)]
    shown: list[tuple[list[Sent], list[int]]] = [([victim, *crowd], some), (crowd, others)]
    rules = RELEASING if guarded else without(checks.certified, rules=RELEASING)
    sums, refusals = [], []
    async with ledgers(world, tmp_path) as books:
        asked = [(ask(world, [one.update for one in sent]), sent, to) for sent, to in shown]
        for request, _, to in asked:
            for holder in to:
                await books[holder].decide(request, VOTING)
        for request, sent, to in asked:
            with_votes = certify(world, request, [*colluders, *to])
            try:
                quorum = colluders + await released(world, books, with_votes, to[: committee.threshold - f], rules)
            except ProblemError as refusal:
                refusals.append(refusal.problem)
                continue
            by_id = {one.header.update_id: one for one in sent}
            listed = [by_id[header.update_id] for header in request.headers]
            parts: dict[int, bytes] = {}
            for holder in quorum:
                parts |= shares(world, holder, request, listed)
            sums.append(combine(world, parts, listed))
    if guarded:
        assert len(sums) <= 1
        assert set(refusals) == {NOT_CERTIFIED}
    else:
        assert np.abs(sums[0] - sums[1] - victim.integers).max() <= 8 * 6.4 * 3  # the victim's own update


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [((1, 2, 3, 4), checks.number_in_plan), ((1, 2, 1, 2), checks.number_unused)],
    ids=["numbers_go_on", "numbers_come_again"],
)
@pytest.mark.parametrize("guarded", [False, True], ids=["off", "on"])
async def test_holders_away_in_turn_open_no_more_than_the_plan_says(
    numbers: tuple[int, ...], rule: Rule, guarded: bool
) -> None:
    """No holder lies; each of 2/4/3 is away for a round in turn. The plan is of two openings, of disjoint crowds."""
    voting, releasing = (rules if guarded else without(rule, rules=rules) for rules in (VOTING, RELEASING))
    court = Court("2/4/3", 0, voting=voting, releasing=releasing)
    rounds = [Asked(number, frozenset({2 * at, 2 * at + 1})) for at, number in enumerate(numbers)]
    there = [(at, [holder for holder in court.honest if holder != at]) for at in range(len(rounds))]
    await court.play(rounds, [Step(act, h, at) for at, some in there for act in ("vote", "release") for h in some])
    assert len(court.opened(rounds)) == (OPENINGS if guarded else len(rounds))
