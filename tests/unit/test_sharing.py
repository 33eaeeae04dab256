"""Who knows what, and whom to believe."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from he_protocol.problems import BAD_COMMITTEE, COMBINE_REFUSED
from he_protocol.sharing import MAX_PARTS, Resolution, Sharing, resolve

from .refusals import refused

COMMITTEES = [(n, t) for n in range(1, 10) for t in range(1, n + 1) if comb(n, t - 1) <= MAX_PARTS]


@pytest.mark.parametrize(("n", "t"), COMMITTEES)
def test_t_holders_know_everything_and_fewer_miss_exactly_their_own_part(n, t):
    sharing = Sharing(n, t)
    everything = set(range(sharing.parts))
    assert len(sharing.excluded) == sharing.parts == comb(n, t - 1)
    known = [set(sharing.parts_of(h)) for h in range(n)]
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
        (10, 6, "too many parts"),
        (11, 7, "too many parts"),
        (127, 127, "too many parts"),
    ],
)
def test_other_committees_are_refused(n, t, why):
    with refused(BAD_COMMITTEE, why):
        Sharing(n, t)


def honest(sharing: Sharing, holders) -> dict[int, dict[int, bytes]]:
    return {h: {i: b"part %d" % i for i in sharing.parts_of(h)} for h in holders}


def truth(sharing: Sharing) -> tuple[bytes, ...]:
    return tuple(b"part %d" % i for i in range(sharing.parts))


@pytest.mark.parametrize(("n", "t"), [(1, 1), (2, 2), (3, 2), (3, 3), (4, 2), (5, 3), (7, 3), (7, 4)])
def test_honest_quorums_agree(n, t):
    sharing = Sharing(n, t)
    for quorum in [*list(combinations(range(n), t)), tuple(range(n))]:
        assert resolve(sharing, honest(sharing, quorum)) == Resolution(truth(sharing), frozenset())


@pytest.mark.parametrize("liar", range(5))
def test_one_liar_is_outvoted_and_named(liar):
    sharing = Sharing(5, 3)
    claims = honest(sharing, range(5))
    claims[liar] = dict.fromkeys(claims[liar], b"lie")
    assert resolve(sharing, claims) == Resolution(truth(sharing), frozenset({liar}))


def test_a_liar_is_not_believed_where_nobody_can_contradict_it():
    """Holder 0 lies on a part that 1 and 2 know too, and alone speaks for another, which is then missing."""
    sharing = Sharing(5, 3)
    claims = honest(sharing, (0, 1, 2))
    only_zero = sharing.excluded.index((1, 2))
    shared = sharing.excluded.index((3, 4))
    claims[0][shared] = b"lie"
    with refused(COMBINE_REFUSED, f"released part {only_zero}"):
        resolve(sharing, claims)
    claims |= honest(sharing, (3,))
    assert resolve(sharing, claims) == Resolution(truth(sharing), frozenset({0}))


def test_a_liar_that_falls_takes_its_votes_along():
    """Two liars support each other on one part; once one is caught elsewhere, the other stands alone."""
    sharing = Sharing(7, 4)
    claims = honest(sharing, range(7))
    pair = sharing.excluded.index((0, 1, 2))  # known to 3, 4, 5, 6
    lonely = sharing.excluded.index((0, 1, 6))  # known to 2, 3, 4, 5
    claims[3][pair] = claims[4][pair] = b"lie"
    with refused(COMBINE_REFUSED, "contradict"):  # two against two
        resolve(sharing, claims)
    claims[3][lonely] = b"other lie"
    assert resolve(sharing, claims) == Resolution(truth(sharing), frozenset({3, 4}))


def test_one_against_one_is_refused():
    sharing = Sharing(3, 2)
    claims = honest(sharing, range(3))
    claims[0][1] = b"lie"
    with refused(COMBINE_REFUSED, "part 1"):
        resolve(sharing, claims)


def test_a_missing_part_is_refused():
    sharing = Sharing(3, 2)
    with refused(COMBINE_REFUSED, "released part 0"):
        resolve(sharing, honest(sharing, (0,)))
    with refused(COMBINE_REFUSED):
        resolve(sharing, {})
    claims = honest(sharing, (0, 1))
    del claims[1][0]
    with refused(COMBINE_REFUSED, "released part 0"):
        resolve(sharing, claims)


def test_liars_cannot_outvote_a_holder_on_a_part_that_they_cannot_know():
    """Two colluding holders claim the very part that they miss, and would frame its only knower in the quorum."""
    sharing = Sharing(5, 3)
    claims = honest(sharing, range(5))
    for silent in (3, 4):
        del claims[silent]
    missed = sharing.excluded.index((0, 1))
    claims[0][missed] = claims[1][missed] = b"lie"
    with refused(COMBINE_REFUSED):  # rather than believe them
        resolve(sharing, claims)
    claims |= honest(sharing, (3, 4))
    assert resolve(sharing, claims) == Resolution(truth(sharing), frozenset({0, 1}))


def test_a_part_that_does_not_exist_makes_its_sender_a_suspect():
    sharing = Sharing(3, 2)
    claims = honest(sharing, range(3))
    claims[2][99] = b"what?"
    assert resolve(sharing, claims) == Resolution(truth(sharing), frozenset({2}))
