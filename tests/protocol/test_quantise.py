"""Clipping and stochastic rounding."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from he_protocol.arithmetic.keystream import expand_words
from he_protocol.privacy.quantise import clip_factor, dequantise, l2_norm, quantise, shrink


def clip_l2(update, norm):
    return shrink(update, clip_factor(l2_norm(update), norm))


@pytest.mark.parametrize("value", [0.3, -0.3, 0.001, -0.999, 0.5, -2.75])
def test_rounding_is_unbiased(value):
    count = 200_000
    words = expand_words(b"\x05" * 32, count // 2).view("<u4")
    rounded = quantise(np.full(count, value, dtype=np.float32), 1.0, 10.0, words)
    exact = float(np.float32(value))
    fraction = exact - np.floor(exact)
    assert set(rounded.tolist()) <= {int(np.floor(exact)), int(np.floor(exact)) + 1}
    assert abs(rounded.mean() - exact) < 4 * sqrt(max(fraction * (1 - fraction), 1e-9) / count)


def test_integers_are_not_touched_by_the_noise():
    top = np.uint32((1 << 32) - 1)
    values = np.array([0, 1, -1, 7, -7], dtype=np.float32)
    for words in (np.zeros(5, dtype=np.uint32), np.full(5, top)):
        assert quantise(values, 4.0, 10.0, words).tolist() == [0, 4, -4, 28, -28]


def test_the_draw_decides_at_its_threshold():
    """The value 0.25 goes up for draws below a quarter of 2^32, and for no other."""
    quarter = 1 << 30
    words = np.array([0, quarter - 1, quarter, quarter + 1, (1 << 32) - 1], dtype=np.uint32)
    assert quantise(np.full(5, 0.25, dtype=np.float32), 1.0, 1.0, words).tolist() == [1, 1, 0, 0, 0]
    assert quantise(np.full(5, -0.75, dtype=np.float32), 1.0, 1.0, words).tolist() == [0, 0, -1, -1, -1]


def test_the_box():
    values = np.array([5, -5, 3.4e38, -3.4e38, 0.5], dtype=np.float32)
    assert quantise(values, 8.0, 0.75, np.zeros(5, dtype=np.uint32)).tolist() == [6, -6, 6, -6, 4]


def test_strides_and_empty_vectors_do_not_matter():
    values = np.arange(24, dtype=np.float32)
    words = np.zeros(24, dtype=np.uint32)
    np.testing.assert_array_equal(quantise(values[::-3], 1.0, 100.0, words[:8]), values[::-3])
    assert quantise(values[:0], 1.0, 1.0, words[:0]).size == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_show_in_the_norm(bad):
    for place in range(7):
        update = np.ones(7, dtype=np.float32)
        update[place] = bad
        assert not np.isfinite(l2_norm(update))
        assert shrink(update, 0.0).tolist() == [0.0] * 7


def test_clipping_scales_only_what_is_too_long():
    short = np.array([0.6, 0.8], dtype=np.float32)
    assert shrink(short, clip_factor(l2_norm(short), 1.5)).tolist() == short.tolist()
    long = clip_l2(np.array([30, 40], dtype=np.float32), 1.0)
    assert long.dtype == np.float32
    np.testing.assert_allclose(long, [0.6, 0.8], rtol=3e-7)
    assert clip_l2(np.full(4, 3e38, dtype=np.float32), 1.0) == pytest.approx(0.5)
    assert clip_l2(np.zeros(3, dtype=np.float32), 1.0).tolist() == [0, 0, 0]


def test_rounding_to_float32_does_not_lift_a_clipped_update_over_the_norm():
    """The accountant's sensitivity is clip_norm itself, not clip_norm and a little."""
    rng = np.random.default_rng(4)
    for norm in (1.0, 0.1, 3.7, 1e-6, 1e4):
        for length in (1, 2, 10, 1000):
            for _ in range(20):
                clipped = clip_l2((rng.normal(size=length) * 100 * norm).astype(np.float32), norm)
                assert np.linalg.norm(clipped.astype(np.float64)) <= norm


def test_dequantise_divides():
    assert dequantise(np.array([6, -3]), 4.0).tolist() == [1.5, -0.75]
