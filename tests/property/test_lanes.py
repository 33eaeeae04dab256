"""The lanes' kernels in their lazy ranges, on arbitrary values below 2q."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from he_protocol import lanes

MODULI = st.sampled_from((257, 12289, 1038337, 1073692673, (1 << 30) - 1))
"""The last is no prime: reduction must not care."""


def near(top: int) -> st.SearchStrategy[int]:
    """Values from 0 to top, often at an end."""
    return st.one_of(st.integers(0, top), st.integers(0, min(3, top)), st.integers(max(0, top - 3), top))


def u32(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


@given(MODULI, st.data())
def test_butterflies(q, data):
    count = data.draw(st.integers(1, 20))
    upper, lower = (data.draw(st.lists(near(2 * q - 1), min_size=count, max_size=count)) for _ in range(2))
    root = data.draw(near(q - 1))
    u, v = u32(upper), u32(lower)
    lanes._butterflies(u, v, np.uint32(root), np.uint32((root << 32) // q), np.uint32(q))
    assert max(*u.tolist(), *v.tolist()) < 2 * q
    assert [x % q for x in u.tolist()] == [(a + b) % q for a, b in zip(upper, lower, strict=True)]
    assert [x % q for x in v.tolist()] == [(a - b) * root % q for a, b in zip(upper, lower, strict=True)]


@given(MODULI, st.data())
def test_scale_multiplies_whole_words(q, data):
    words = data.draw(st.lists(near((1 << 64) - 1), min_size=16, max_size=16))
    factor = data.draw(near(q - 1))
    high = factor * (1 << 32) % q
    factors = u32([factor, (factor << 32) // q, high, (high << 32) // q])[None, :]
    out = np.empty((1, 16), dtype=np.uint32)
    halves = np.array(words, dtype="<u8").view("<u4").reshape(1, 16, 2)
    lanes._scale(halves, factors, np.uint32(q), out)
    assert max(out[0].tolist()) < 2 * q
    assert [x % q for x in out[0].tolist()] == [w * factor % q for w in words]


@given(MODULI, st.integers(0, 2**32), st.data())
def test_rows_reduce_fully_and_transpose(q, seed, data):
    values = np.random.default_rng(seed).integers(0, 2 * q, (128, 16), dtype=np.uint32)
    values[data.draw(st.integers(0, 127)), data.draw(st.integers(0, 15))] = data.draw(near(2 * q - 1))
    values[0, 0], values[127, 15], values[64, 3] = q, 2 * q - 1, q - 1
    out = np.empty((16, 128), dtype=np.uint64)
    lanes._rows(values, np.uint32(q), out)
    np.testing.assert_array_equal(out, values.T % np.uint32(q))
