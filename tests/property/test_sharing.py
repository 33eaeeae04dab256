"""Sharing: honest majorities prevail whatever the liars claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from he_protocol.problems import COMBINE_REFUSED, Refusal
from he_protocol.sharing import Sharing, resolve


@given(st.sampled_from([(3, 2), (4, 3), (5, 3), (6, 4), (7, 4)]), st.data())
def test_one_liar_never_changes_an_answer(committee, data):
    """The truth or a refusal; no honest holder is named."""
    sharing = Sharing(*committee)
    holders = data.draw(st.sets(st.integers(0, sharing.holders - 1), min_size=sharing.threshold))
    liar = data.draw(st.sampled_from(sorted(holders)))
    claims = {h: {i: bytes([i]) for i in sharing.parts_of(h)} for h in holders}
    claims[liar] = data.draw(
        st.dictionaries(st.integers(0, sharing.parts), st.sampled_from((b"lie", b"\0", b"\1", b"\2")), max_size=40)
    )
    try:
        got = resolve(sharing, claims)
    except Refusal as refusal:
        if refusal.problem is not COMBINE_REFUSED:
            raise
        return
    assert got.suspects <= {liar}
    for part, digest in enumerate(got.digests):
        honest = set(sharing.holders_of(part)) & holders - {liar}
        assert digest == bytes([part]) or not honest
