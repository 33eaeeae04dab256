"""Who knows what, and whom to believe."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from he_protocol.problems import BAD_COMMITTEE
from he_protocol.sharing import MAX_SUBSHARES, Resolution, Sharing, choices
from he_testing.problems import expect_problem

COMMITTEES = [(n, t) for n in range(1, 10) for t in range(1, n + 1) if comb(n, t - 1) <= MAX_SUBSHARES]


@pytest.mark.parametrize(("n", "t"), COMMITTEES)
def test_t_holders_know_everything_and_fewer_miss_exactly_their_own_part(n, t):
    sharing = Sharing(n, t)
    everything = set(range(sharing.subshares))
    assert len(sharing.excluded) == sharing.subshares == comb(n, t - 1)
    known = [set(sharing.subshares_of(h)) for h in range(n)]
    for quorum in combinations(range(n), t):
        assert set().union(*(known[h] for h in quorum)) == everything
    for few in combinations(range(n), t - 1):
        missing = everything - set().union(*(known[h] for h in few))
        assert missing == {sharing.excluded.index(few)}
    for part in everything:
        assert sharing.holders_of(part) == tuple(h for h in range(n) if part in known[h])
        assert len(sharing.holders_of(part)) == n - t + 1


@pytest.mark.parametrize(
    ("n", "t", "why"),
    [
        (3, 0, "between 1"),
        (3, 4, "between 1"),
        (3, -1, "between 1"),
        (0, 0, "between 1"),
        (10, 6, "too many subshares"),
        (11, 7, "too many subshares"),
        (127, 127, "too many subshares"),
    ],
)
def test_other_committees_are_refused(n, t, why):
    with expect_problem(BAD_COMMITTEE, why):
        Sharing(n, t)


def honest(sharing: Sharing, holders) -> dict[int, dict[int, bytes]]:
    return {h: {i: b"part %d" % i for i in sharing.subshares_of(h)} for h in holders}


def truth(sharing: Sharing) -> tuple[bytes, ...]:
    return tuple(b"part %d" % i for i in range(sharing.subshares))


@pytest.mark.parametrize(("n", "t"), [(1, 1), (2, 2), (3, 2), (3, 3), (4, 2), (5, 3), (7, 3), (7, 4)])
def test_honest_quorums_agree(n, t):
    sharing = Sharing(n, t)
    for quorum in [*list(combinations(range(n), t)), tuple(range(n))]:
        found = choices(sharing, honest(sharing, quorum))
        assert found == [Resolution(truth(sharing), frozenset(quorum), frozenset())]
        assert found[0].certain(sharing) == (len(quorum) >= 2 * t - 1)


@pytest.mark.parametrize("liar", range(5))
def test_one_liar_is_outvoted_and_named(liar):
    sharing = Sharing(5, 3)
    claims = honest(sharing, range(5))
    claims[liar] = dict.fromkeys(claims[liar], b"lie")
    assert choices(sharing, claims)[0] == Resolution(truth(sharing), frozenset(range(5)) - {liar}, frozenset({liar}))


def test_one_against_one_leaves_both_choices():
    """2-of-3: a part is known to two. Only what they open to can tell which is right."""
    sharing = Sharing(3, 2)
    claims = honest(sharing, range(3))
    claims[0][1] = b"lie"
    found = choices(sharing, claims)
    assert {choice.support for choice in found} == {frozenset({0, 1}), frozenset({1, 2})}  # 1 does not know part 1
    assert Resolution(truth(sharing), frozenset({1, 2}), frozenset({0})) in found
    assert not any(choice.certain(sharing) for choice in found)


def test_too_few_have_no_choice():
    sharing = Sharing(3, 2)
    assert choices(sharing, honest(sharing, (0,))) == []
    assert choices(sharing, {}) == []


def test_who_leaves_a_part_out_or_claims_a_strange_one_is_not_heard():
    """Two colluding holders would speak for the very part that they miss; one claims a part that does not exist."""
    sharing = Sharing(5, 3)
    claims = honest(sharing, range(5))
    missed = sharing.excluded.index((0, 1))
    claims[0][missed] = b"lie"
    claims[1][99] = b"what?"
    assert choices(sharing, claims) == [Resolution(truth(sharing), frozenset({2, 3, 4}), frozenset({0, 1}))]
    del claims[2][missed]
    assert choices(sharing, claims) == []


def test_who_released_nothing_is_no_suspect():
    """It may say that it cannot use an update of the bucket."""
    sharing = Sharing(3, 2)
    claims = honest(sharing, (0, 1)) | {2: {}}
    assert choices(sharing, claims) == [Resolution(truth(sharing), frozenset({0, 1}), frozenset())]
