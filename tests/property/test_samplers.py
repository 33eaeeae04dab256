"""Sampling and rounding kernels against plain Python, on arbitrary words."""

from __future__ import annotations

from bisect import bisect_right
from math import floor, prod, sqrt

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from he_protocol.privacy.gaussian import TABLE_STD, UNDECIDED, Gaussian
from he_protocol.privacy.quantise import COLUMNS, clip_factor, l2_norm, quantise, shrink


def clip_l2(update, norm):
    return shrink(update, clip_factor(l2_norm(update), norm))


WORD = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from((0, 1, 2**63 - 1, 2**63, 2**64 - 1)))
HALF_WORD = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
FLOAT = st.floats(-1e6, 1e6, width=32)


def plain_samples(sampler: Gaussian, words: list[int], count: int) -> list[int]:
    """16 bits each, least significant first, one level after the other; else 48 more from the next spare word."""
    per_sample = 2 ** len(sampler.factors)
    used = -(-count * per_sample // 4)
    lanes = [word >> 16 * i & 0xFFFF for word in words[:used] for i in range(4)]
    spare, table = iter(words[used:]), sampler._table.cumulative.tolist()
    out = [0] * count
    for place in range(per_sample):
        weight = prod(k for level, k in enumerate(sampler.factors) if place >> level & 1)
        for sample, lane in enumerate(lanes[place * count : (place + 1) * count]):
            low, high = (bisect_right(table, lane << 48 | rest) for rest in (0, (1 << 48) - 1))
            index = low if low == high else bisect_right(table, lane << 48 | next(spare) >> 16)
            out[sample] += weight * (index - sampler._table.bound)
    return out


@st.composite
def sampled(draw) -> tuple[Gaussian, int, list[int]]:
    """Words enough for a few samples: random ones, and lanes that the first 16 bits leave undecided."""
    sampler = Gaussian(draw(st.sampled_from((0.4, 1.0, 6.4, 96.0, 100.0, 140.0, 5000.0, 1e7, 1e9))))
    count = draw(st.integers(0, 12))
    undecided = np.flatnonzero(sampler._table.direct == UNDECIDED).tolist()
    lane = st.one_of(st.integers(0, 0xFFFF), st.sampled_from((0, 0xFFFF, 0x7FFF, 0x8000)), st.sampled_from(undecided))
    lanes = count * 2 ** len(sampler.factors)
    word = st.one_of(
        WORD, st.lists(lane, min_size=4, max_size=4).map(lambda l4: sum(x << 16 * i for i, x in enumerate(l4)))
    )
    used = -(-lanes // 4)
    return (
        sampler,
        count,
        draw(st.lists(word, min_size=used, max_size=used)) + draw(st.lists(WORD, min_size=lanes, max_size=lanes)),
    )


@settings(max_examples=100)
@given(sampled())
def test_a_sample_is_a_weighted_sum_of_bisections(case):
    sampler, count, words = case
    assert sampler.sample(np.array(words, dtype=np.uint64), count).tolist() == plain_samples(sampler, words, count)


@settings(max_examples=50)
@given(sampled(), st.integers(-1000, 1000))
def test_added_samples_are_the_same_samples(case, before):
    sampler, count, words = case
    totals = np.full(count, before, dtype=np.int64)
    sampler.add(totals, np.array(words, dtype=np.uint64))
    assert totals.tolist() == [before + sample for sample in plain_samples(sampler, words, count)]


@settings(max_examples=30)
@given(st.floats(1e-3, 1e9))
def test_factors_multiply_up_to_any_std(std):
    sampler = Gaussian(std)
    base = std / prod((1 + k * k) ** 0.5 for k in sampler.factors)
    assert base <= TABLE_STD * (1 + 1e-12)
    assert sampler.factors == () or base > 60
    assert all(k >= 1 for k in sampler.factors)


@given(st.lists(st.tuples(FLOAT, HALF_WORD), max_size=20), st.floats(2**-10, 2.0**30), st.floats(2**-10, 2.0**10))
def test_quantise_is_floor_and_a_32_bit_draw(pairs, scale, bound):
    values = np.array([v for v, _ in pairs], dtype=np.float32)
    words = np.array([w for _, w in pairs], dtype=np.uint32)
    wanted = []
    for v, w in pairs:
        scaled = min(max(float(np.float32(v)), -bound), bound) * scale
        wanted.append(floor(scaled) + (w * 2.0**-32 < scaled - floor(scaled)))
    got = quantise(values, scale, bound, words)
    assert got.tolist() == wanted
    assert (np.abs(got) <= bound * scale + 1).all()


@settings(max_examples=30)
@given(st.integers(0, 3 * COLUMNS), st.integers(0, 2**32))
def test_a_norm_is_the_sum_of_columns(size, seed):
    """To the last bit: each column's squares one after the other, then the columns."""
    update = np.random.default_rng(seed).standard_normal(size, dtype=np.float32) * np.float32(1e15)
    total = 0.0
    for first in range(COLUMNS):
        column = 0.0
        for value in update[first::COLUMNS].tolist():
            column += value * value
        total += column
    assert l2_norm(update) == sqrt(total)


@given(st.lists(FLOAT, min_size=1, max_size=50), st.floats(1e-6, 1e6))
def test_a_clipped_update_is_never_longer_than_the_norm(values, norm):
    update = np.array(values, dtype=np.float32)
    clipped = clip_l2(update, norm).astype(np.float64)
    assert np.linalg.norm(clipped) <= norm
    shrunk = update.astype(np.float64) * min(1, norm / max(norm, np.linalg.norm(update.astype(np.float64))))
    np.testing.assert_allclose(clipped, shrunk, rtol=1e-6, atol=1e-44)  # the grid of float32's subnormals
