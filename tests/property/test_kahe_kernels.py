"""The kernels of scheme `kahe` that touch plaintext, against plain integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from he_client.schemes.kahe import _mask
from he_protocol.schemes.kahe import PROFILES, _subtract_centred

MODULI = st.sampled_from([profile.modulus for profile in PROFILES.values()])


def near(low: int, top: int) -> st.SearchStrategy[int]:
    return st.one_of(
        st.integers(low, top), st.sampled_from([v for v in (low, low + 1, -1, 0, 1, top - 1, top) if low <= v])
    )


@given(MODULI, st.data())
def test_mask_adds_values(q, data):
    """Every |value| below q is added, positive or not."""
    count = data.draw(st.integers(1, 20))
    rows = data.draw(st.lists(near(0, q - 1), min_size=count, max_size=count))
    values = data.draw(st.lists(near(1 - q, q - 1), min_size=count, max_size=count))
    got = np.array(rows, dtype=np.uint32)
    _mask(got, np.array(values, dtype=np.int64), np.uint32(q))
    assert got.tolist() == [(row + value) % q for row, value in zip(rows, values, strict=True)]


@given(MODULI, st.data())
def test_subtract_centred(q, data):
    """Into (-q/2, q/2], as int64, in place."""
    count = data.draw(st.integers(1, 20))
    rows, product = (data.draw(st.lists(near(0, q - 1), min_size=count, max_size=count)) for _ in range(2))
    got = np.array([rows], dtype=np.uint64)
    _subtract_centred(got, np.array([product], dtype=np.uint32), q)
    signed = got.view(np.int64)[0].tolist()
    wanted = [(a - b) % q for a, b in zip(rows, product, strict=True)]
    assert signed == [w - q if w > q // 2 else w for w in wanted]


@given(MODULI, st.data())
def test_what_is_masked_comes_back(q, data):
    half = q // 2
    terms = data.draw(st.lists(near(-half, half), min_size=1, max_size=20))
    masks = data.draw(st.lists(near(0, q - 1), min_size=len(terms), max_size=len(terms)))
    rows = np.array(masks, dtype=np.uint32)
    _mask(rows, np.array(terms, dtype=np.int64), np.uint32(q))
    opened = rows.astype(np.uint64).reshape(1, -1)
    _subtract_centred(opened, np.array([masks], dtype=np.uint32), q)
    assert opened.view(np.int64)[0].tolist() == terms
