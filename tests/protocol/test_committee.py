"""A committee's numbers, and what follows from them."""

from __future__ import annotations

from itertools import combinations

import pytest

from he_protocol.committee import Committee, check_collusion, describe, parse_committee
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_COMMITTEE
from he_testing.problems import expect_problem


def all_committees(most: int) -> list[Committee]:
    """Every committee that is one, up to so many holders."""
    found = []
    for n in range(1, most + 1):
        for t in range(1, n + 1):
            for a in range(t, n + 1):
                try:
                    found.append(Committee(n, t, a))
                except ProblemError:
                    continue
    return found


@pytest.mark.parametrize(
    ("text", "f", "away"),
    [("2/4/3", 1, 1), ("3/7/5", 2, 2), ("3/5/4", 2, 1), ("2/3/3", 1, 0), ("2/3/2", 0, 1), ("1/1/1", 0, 0)],
)
def test_the_bound_of_a_committee(text: str, f: int, away: int) -> None:
    committee = parse_committee(text)
    assert (committee.colluders, committee.away, str(committee)) == (f, away, text)
    said = describe(committee)
    assert f"at most {f} of them collude with the server (f = {f})" in said
    assert f"at most {away} are away" in said


@pytest.mark.parametrize("committee", all_committees(7), ids=str)
def test_f_liars_are_in_no_two_sets_of_voters_alone_and_open_nothing_alone(committee: Committee) -> None:
    n, f = committee.holders, committee.colluders
    voters = [set(some) for some in combinations(range(n), committee.agreement)]
    shared = min(len(one & other) for one in voters for other in voters)
    assert shared > f
    assert committee.threshold > f
    assert shared == f + 1 or committee.threshold == f + 1  # and one more liar is one too many


@pytest.mark.parametrize("committee", all_committees(9), ids=str)
def test_an_update_is_left_out_by_no_liars_alone_and_by_whoever_must_be_there(committee: Committee) -> None:
    """More than may lie where there are so many; but never more than would keep a manifest from its votes."""
    needed = committee.needed_to_exclude
    assert 1 <= needed <= committee.agreement
    assert needed > committee.away or needed == committee.colluders + 1
    assert committee.holders - needed < committee.agreement or needed > committee.colluders


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ((4, 0, 3), "do not fit"),
        ((4, 5, 5), "do not fit"),
        ((4, 3, 2), "do not fit"),
        ((4, 2, 5), "do not fit"),
        ((0, 0, 0), "do not fit"),
        ((4, 2, 2), "at least 3"),
        ((7, 3, 3), "at least 4"),
    ],
)
def test_numbers_that_are_no_committee(numbers: tuple[int, int, int], why: str) -> None:
    with expect_problem(BAD_COMMITTEE, why):
        Committee(*numbers)


@pytest.mark.parametrize("text", ["", "2/4", "2/4/3/1", "2/4/-3", "2/ 4/3", "two/4/3", "2/4/٣", "2/4/3000", "2//3"])
def test_texts_that_are_no_committee(text: str) -> None:
    with expect_problem(BAD_COMMITTEE):
        parse_committee(text)


def test_one_colluder_too_many_must_be_allowed_in_words() -> None:
    weak = parse_committee("2/3/2")
    with expect_problem(BAD_COMMITTEE, "allow_no_collusion"):
        check_collusion(weak, False)
    check_collusion(weak, True)
    check_collusion(parse_committee("2/4/3"), False)
