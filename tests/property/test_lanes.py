"""The lanes' kernels in their lazy ranges, on arbitrary values below 2q."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from he_protocol.arithmetic import ntt_lanes

MODULI = st.sampled_from((257, 12289, 1038337, 1073692673, (1 << 30) - 1))
"""The last is no prime: reduction must not care."""


def near(top: int) -> st.SearchStrategy[int]:
    """Values from 0 to top, often at an end."""
    return st.one_of(st.integers(0, top), st.integers(0, min(3, top)), st.integers(max(0, top - 3), top))


@given(MODULI, st.data())
def test_a_product_by_a_constant(q, data):
    """For every 32-bit word, not only for residues."""
    x, factor = data.draw(near((1 << 32) - 1)), data.draw(near(q - 1))
    got = int(ntt_lanes._times(np.uint32(x), np.uint32(factor), np.uint32((factor << 32) // q), np.uint32(q)))
    assert got < 2 * q
    assert got % q == x * factor % q


@given(MODULI, st.data())
def test_a_butterfly(q, data):
    u, v, root = data.draw(near(2 * q - 1)), data.draw(near(2 * q - 1)), data.draw(near(q - 1))
    shoup = np.uint32((root << 32) // q)
    upper, lower = map(int, ntt_lanes._butterfly(np.uint32(u), np.uint32(v), np.uint32(root), shoup, np.uint32(q)))
    assert max(upper, lower) < 2 * q
    assert (upper % q, lower % q) == ((u + v) % q, (u - v) * root % q)


@given(MODULI, st.sampled_from((64, 128, 256, 512)), st.integers(0, 2**32))
def test_all_passes_are_the_plain_stages(q, degree, seed):
    """Whatever the factors and roots are: the passes of two stages against one stage after the other, in integers."""
    rng = np.random.default_rng(seed)
    work = rng.integers(0, 1 << 32, (degree, 16), dtype=np.uint32)
    factors, roots = (rng.integers(0, q, degree, dtype=np.uint64) for _ in range(2))
    values = work.astype(object) * factors[:, None].astype(object) % q
    half = degree // 2
    while half:
        pairs = values.reshape(half, 2, -1)
        u, v = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 0], pairs[:, 1] = (u + v) % q, (u - v) * roots[half : 2 * half, None].astype(object) % q
        half //= 2
    tables = [np.stack([t, (t << np.uint64(32)) // np.uint64(q)], axis=1).astype(np.uint32) for t in (factors, roots)]
    ntt_lanes._multiply(work.reshape(-1), *tables, np.uint32(q))
    assert work.max() < 2 * q
    assert (work.astype(object) % q == values).all()


@given(MODULI, st.lists(st.integers(0, 767), max_size=9, unique=True), st.integers(0, 9), st.data())
def test_rejected_words_are_replaced_in_their_order(q, places, left, data):
    """At any places, also beside each other and at the ends of the parts that are looked through at once."""
    limit = (1 << 32) // q * q
    words = np.random.default_rng(len(places)).integers(0, limit, 768, dtype=np.uint32)
    for place in places:
        words[place] = data.draw(st.integers(limit, (1 << 32) - 1))
    words[data.draw(st.integers(0, 767).filter(lambda place: place not in places))] = limit - 1
    spare = np.random.default_rng(left).integers(0, 1 << 64, left, dtype=np.uint64)
    replacements, wanted = iter(spare.tolist()), words.tolist()
    enough = len(places) <= left
    if enough:
        wanted = [next(replacements) % q if word >= limit else word for word in wanted]
    assert ntt_lanes._replace_rejected(words, spare, np.uint32(limit), np.uint32(q)) == enough
    assert not enough or words.tolist() == wanted


@given(MODULI, st.integers(0, 2**32), st.data())
def test_rows_reduce_fully_and_transpose(q, seed, data):
    values = np.random.default_rng(seed).integers(0, 2 * q, (128, 16), dtype=np.uint32)
    values[data.draw(st.integers(0, 127)), data.draw(st.integers(0, 15))] = data.draw(near(2 * q - 1))
    values[0, 0], values[127, 15], values[64, 3] = q, 2 * q - 1, q - 1
    out = np.empty((16, 128), dtype=np.uint32)
    ntt_lanes._rows(values, np.uint32(q), out)
    np.testing.assert_array_equal(out, values.T % np.uint32(q))
