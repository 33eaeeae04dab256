"""Sharing: what honest holders say is found whatever the liars claim."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_protocol.sharing import Sharing, choices
from tests.support.committees import BYZANTINE, sharing_of


def truth(sharing: Sharing, part: int) -> bytes:
    return b"part %d" % part


def honest(sharing: Sharing, holders: set[int]) -> dict[int, dict[int, bytes]]:
    return {h: {i: truth(sharing, i) for i in sharing.subshares_of(h)} for h in holders}


LIES = st.sampled_from((b"lie", b"other lie", b"part 0", b"part 1"))


def lied(data: st.DataObject, sharing: Sharing, liar: int) -> dict[int, bytes]:
    """Any claims: the same lie as others or not, on one part or on all, also on parts that it cannot know."""
    claims = {i: truth(sharing, i) for i in sharing.subshares_of(liar)}
    strange = data.draw(st.booleans())
    parts = st.integers(0, sharing.subshares) if strange else st.sampled_from(sharing.subshares_of(liar))
    return claims | data.draw(st.dictionaries(parts, LIES, max_size=sharing.subshares))


@given(st.sampled_from([(3, 2), (4, 2), (4, 3), (5, 3), (6, 4), (7, 3), (7, 4)]), st.data())
def test_what_honest_holders_say_is_a_choice_and_no_certain_one_is_another(
    committee: tuple[int, int], data: st.DataObject
) -> None:
    """Up to t-1 liars among any who answered."""
    sharing = sharing_of(*committee)
    holders = data.draw(st.sets(st.integers(0, sharing.holders - 1), min_size=sharing.threshold))
    liars = data.draw(st.sets(st.sampled_from(sorted(holders)), max_size=sharing.threshold - 1))
    claims = honest(sharing, holders - liars) | {liar: lied(data, sharing, liar) for liar in liars}
    right = tuple(truth(sharing, i) for i in range(sharing.subshares))
    found = choices(sharing, claims)
    assert len({choice.digests for choice in found}) == len(found)
    for choice in found:
        assert choice.digests == right or not choice.certain(sharing)
        assert choice.support.isdisjoint(choice.suspects)
    if len(holders - liars) >= sharing.threshold:
        (chosen,) = [choice for choice in found if choice.digests == right]
        assert chosen.suspects == {h for h in liars if claims[h] != {i: right[i] for i in sharing.subshares_of(h)}}


@pytest.mark.parametrize("committee", BYZANTINE)
@given(st.data())
def test_f_liars_of_a_byzantine_committee_never_win(committee: tuple[int, int], data: st.DataObject) -> None:
    """n = 3f+1, t = f+1, all answer: what honest holders say comes first, is certain, and names all who lied."""
    sharing = sharing_of(*committee)
    liars = data.draw(st.sets(st.integers(0, sharing.holders - 1), max_size=sharing.threshold - 1))
    claims = honest(sharing, set(range(sharing.holders)) - liars)
    claims |= {liar: lied(data, sharing, liar) for liar in liars}
    first, *others = choices(sharing, claims)
    assert first.digests == tuple(truth(sharing, i) for i in range(sharing.subshares))
    assert first.certain(sharing)
    assert not any(choice.certain(sharing) for choice in others)
    assert first.suspects == {h for h in liars if claims[h] != {i: truth(sharing, i) for i in sharing.subshares_of(h)}}


@pytest.mark.parametrize("committee", BYZANTINE)
def test_one_liar_more_can_win(committee: tuple[int, int]) -> None:
    """The bound is tight: f+1 liars with f honest holders that do not know a part agree on a lie about it."""
    sharing = sharing_of(*committee)
    f = sharing.threshold - 1
    claims = honest(sharing, set(range(sharing.holders)))
    duped = tuple(range(f))
    part = sharing.excluded.index(duped)
    for liar in range(f, 2 * f + 1):
        claims[liar][part] = b"lie"
    assert any(choice.certain(sharing) and choice.digests[part] == b"lie" for choice in choices(sharing, claims))


@pytest.mark.parametrize("committee", BYZANTINE)
def test_every_set_of_f_liars_with_the_same_lie(committee: tuple[int, int]) -> None:
    """The lie of a single part, and of all: the review's p23."""
    sharing = sharing_of(*committee)
    for liars in combinations(range(sharing.holders), sharing.threshold - 1):
        for parts in [*((part,) for part in range(sharing.subshares)), tuple(range(sharing.subshares))]:
            claims = honest(sharing, set(range(sharing.holders)))
            for liar in liars:
                claims[liar] |= dict.fromkeys(set(parts) & set(sharing.subshares_of(liar)), b"lie")
            first = choices(sharing, claims)[0]
            assert first.certain(sharing)
            assert b"lie" not in first.digests
            assert first.suspects == {liar for liar in liars if set(parts) & set(sharing.subshares_of(liar))}
