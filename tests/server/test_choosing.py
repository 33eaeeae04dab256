"""Which of several plausible sums is believed: never one picked arbitrarily."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from he_protocol.errors import ProblemError
from he_protocol.problems import COMBINE_REFUSED, WRONG_SIZE
from he_protocol.sharing import Resolution
from he_server.rules.choosing import Candidate, Settled, Unsettled, settle
from he_testing.problems import expect_problem
from tests.support.committees import sharing_of

FOUR = sharing_of(4, 2)


def choice(*support: int, name: str = "") -> Resolution:
    return Resolution((name.encode() or bytes(support),), frozenset(support), frozenset(range(4)) - set(support))


def settled(
    sums: Mapping[Resolution, str], *, heard: int = 4, binding: bool = True, last: bool = False
) -> Settled | Unsettled:
    """`sums`: what each choice opens to; "" where it cannot be a sum."""

    def attempt(found: Resolution) -> Candidate:
        if not sums[found]:
            raise ProblemError(COMBINE_REFUSED, "out of range")
        return Candidate(lambda first, total: total, 1.0, sums[found].encode())  # type: ignore[arg-type, return-value]

    return settle(FOUR, list(sums), attempt, heard=range(heard), binding=binding, last=last)


def test_one_plausible_sum_is_believed():
    wrong, right = choice(0, 1), choice(1, 2)
    outcome = settled({wrong: "", right: "sum"}, heard=3)
    assert isinstance(outcome, Settled)
    assert outcome.choice == right


@pytest.mark.parametrize("last", [False, True])
def test_two_different_plausible_sums_are_a_contradiction(last):
    outcome = settled({choice(0, 1): "one sum", choice(1, 2): "another"}, heard=3, last=last)
    assert isinstance(outcome, Unsettled)
    assert "different sums" in outcome.refusal.detail
    assert not outcome.final  # a fourth holder may make one of them certain


def test_two_choices_that_open_to_one_sum_are_none():
    """Two liars can add to one part what they take off another."""
    outcome = settled({choice(0, 1): "sum", choice(1, 2): "sum"}, heard=3)
    assert isinstance(outcome, Settled)


def test_a_certain_choice_is_believed_and_the_others_not_even_tried():
    sums = {choice(1, 2, 3): "sum", choice(0, 1): "other"}
    tried = []

    def attempt(found: Resolution) -> Candidate:
        tried.append(found)
        return Candidate(lambda first, total: total, 1.0, sums[found].encode())  # type: ignore[arg-type, return-value]

    outcome = settle(FOUR, list(sums), attempt, heard=range(4), binding=False, last=False)
    assert isinstance(outcome, Settled)
    assert tried == [choice(1, 2, 3)]


def test_shares_that_prove_nothing_wait_for_agreement_or_for_the_last():
    """Scheme `ckks`: one liar among two adds what it likes, in range."""
    for last, kind in ((False, Unsettled), (True, Settled)):
        assert isinstance(settled({choice(0, 1): "sum"}, heard=2, binding=False, last=last), kind)
    outcome = settled({choice(0, 1): "sum"}, heard=2, binding=False)
    assert isinstance(outcome, Unsettled)
    assert "too few key holders agree" in outcome.refusal.detail


def test_what_is_certain_and_no_sum_is_final():
    """A client lied: nobody need wait for a holder that is away."""
    outcome = settled({choice(0, 1, 2): ""}, heard=3)
    assert isinstance(outcome, Unsettled)
    assert outcome.final
    outcome = settled({choice(0, 1): ""}, heard=2)
    assert isinstance(outcome, Unsettled)
    assert not outcome.final
    outcome = settled({choice(0, 1, 2): "", choice(2, 3): "sum"})  # it sealed right seeds for these two only
    assert isinstance(outcome, Settled)


def test_no_choice_says_why():
    few, none = settled({}, heard=1), settled({}, heard=3)
    assert isinstance(few, Unsettled)
    assert "too few key holders" in few.refusal.detail
    assert isinstance(none, Unsettled)
    assert "contradict each other" in none.refusal.detail


def test_damaged_bytes_are_no_lie():
    def attempt(_: Resolution) -> Candidate:
        raise ProblemError(WRONG_SIZE, "cut")

    with expect_problem(WRONG_SIZE):
        settle(FOUR, [choice(0, 1)], attempt, heard=range(2), binding=True, last=True)
