"""The account notices: every kind of damage, planted in a made-up history, is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from he_protocol.problems import TOO_FEW_CLIENTS
from tests.crash.account import Evidence, Finding, RoundEvidence, UpdateEvidence, account

A, B, C, D = (
    UpdateEvidence("a", 0, 1, "published", ""),
    UpdateEvidence("b", 1, 1, "published", ""),
    UpdateEvidence("c", 2, 2, "published", ""),
    UpdateEvidence("d", 3, 3, "failed", TOO_FEW_CLIENTS.urn),
)
FIRST = RoundEvidence(1, "published", 2, version=1, ones={0: 1, 1: 1}, error=4.0)
SECOND = RoundEvidence(2, "published", 1, version=2, ones={2: 1})
THIRD = RoundEvidence(3, "failed", 1, failure=TOO_FEW_CLIENTS.urn)
OPEN = RoundEvidence(4, "open", 0)
HONEST = Evidence(
    updates=(A, B, C, D),
    rounds=(FIRST, SECOND, THIRD, OPEN),
    manifests=(("holder-1", 1, "aa"), ("holder-2", 1, "aa"), ("holder-1", 2, "bb")),
)


def kinds(evidence: Evidence) -> set[str]:
    return {finding.kind for finding in account(evidence)}


def with_round(changed: RoundEvidence) -> Evidence:
    rounds = (changed if round_.number == changed.number else round_ for round_ in HONEST.rounds)
    return replace(HONEST, rounds=tuple(rounds))


def with_update(changed: UpdateEvidence) -> Evidence:
    updates = (changed if update.update_id == changed.update_id else update for update in HONEST.updates)
    return replace(HONEST, updates=tuple(updates))


def test_an_honest_history_has_no_findings() -> None:
    assert account(HONEST) == []


def test_a_lost_a_doubled_and_a_stuck_one_are_told_apart() -> None:
    """All three in one history, each reported once."""
    damaged = replace(HONEST, rounds=(replace(FIRST, ones={0: 2}), SECOND, replace(THIRD, state="opening"), OPEN))
    assert account(damaged) == [
        Finding("twice", "update a, round 1 published: in the sums of rounds [1, 1]"),
        Finding("lost", "update b, round 1 published: in the sums of rounds []"),
        Finding("stuck", "round 3 opening, 1 updates"),
    ]


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        pytest.param(with_round(replace(FIRST, ones={0: 1}, updates=1)), {"lost"}, id="lost with its count"),
        pytest.param(with_update(replace(B, round=0, state=None)), {"lost", "twice"}, id="unknown to the server"),
        pytest.param(with_round(replace(SECOND, ones={0: 1, 2: 1}, updates=2)), {"twice"}, id="in two rounds"),
        pytest.param(with_update(replace(C, round=1)), {"lost", "twice"}, id="in the sum of another round"),
        pytest.param(with_round(replace(SECOND, ones={2: 1, 3: 1}, updates=2)), {"twice"}, id="published and failed"),
        pytest.param(with_update(replace(D, failure="")), {"unreported"}, id="an update's failure without reason"),
        pytest.param(with_round(replace(THIRD, failure="")), {"unreported"}, id="a round's failure without reason"),
        pytest.param(with_update(replace(D, state="closed", failure="")), {"stuck"}, id="an update's round goes on"),
        pytest.param(with_round(replace(OPEN, updates=1)), {"stuck"}, id="the open round never ends"),
        pytest.param(with_round(replace(SECOND, ones={2: 1, 9: 1}, updates=2)), {"unknown"}, id="nobody's update"),
        pytest.param(with_round(replace(SECOND, ones={2: 1}, updates=2)), {"garbled"}, id="fewer ones than updates"),
        pytest.param(with_round(replace(FIRST, error=9.0)), {"garbled"}, id="too far from whole numbers"),
        pytest.param(with_round(replace(SECOND, version=1)), {"version"}, id="a version published twice"),
        pytest.param(with_round(replace(SECOND, version=3)), {"version"}, id="a version left out"),
        pytest.param(replace(HONEST, unsent=("e",)), {"stuck"}, id="a client that cannot send"),
        pytest.param(replace(HONEST, manifests=(*HONEST.manifests, ("holder-2", 2, "cc"))), {"forked"}, id="a fork"),
        pytest.param(replace(HONEST, manifests=(*HONEST.manifests, ("holder-1", 2, "bb"))), {"forked"}, id="two rows"),
        pytest.param(replace(HONEST, refusals=("round 2: stale",)), {"refused"}, id="a refused manifest"),
        pytest.param(replace(HONEST, orphans=("updates/ff",)), {"orphan"}, id="bytes that nothing needs"),
    ],
)
def test_damage_is_named(damaged: Evidence, found: set[str]) -> None:
    assert kinds(damaged) == found
