"""The discrete Gaussian: exact distance of its tables, conditions of its convolutions, and samples."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from math import erf, exp, prod, sqrt

import numpy as np
import pytest

from he_protocol.gaussian import GUIDE, MAX_RATIO, TABLE_STD, TAIL, Gaussian
from he_protocol.keystream import expand_words


def exact(std: float) -> dict[int, Fraction]:
    """D_Z,std as rationals with an error below 10^-50, out to 16 standard deviations."""
    bound = int(16 * std) + 2
    with localcontext(prec=60):
        variance = Decimal(std) ** 2
        weights = [(-Decimal(k * k) / (2 * variance)).exp() for k in range(bound + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        half = [Fraction(w / total) for w in weights]
    return {k: half[abs(k)] for k in range(-bound, bound + 1)}


def table_probabilities(sampler: Gaussian) -> dict[int, Fraction]:
    cumulative = [0, *map(int, sampler._table), 1 << 64]
    steps = [Fraction(b - a, 1 << 64) for a, b in itertools.pairwise(cumulative)]
    return {i - sampler._offset: step for i, step in enumerate(steps)}


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The statistic, and its mean plus five standard deviations."""
    keep = expected >= 10
    counts = np.append(counts[keep], counts[~keep].sum())
    expected = np.append(expected[keep], expected[~keep].sum())
    if expected[-1] < 10:
        counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    free = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum()), free + 5 * sqrt(2 * free)


@pytest.mark.parametrize("std", [0.3, 0.5, 1.0, 3.2, 6.4, 17.3, 60.8, TABLE_STD])
def test_a_table_is_within_2_to_the_minus_53_of_the_distribution(std):
    sampler, wanted = Gaussian(std), exact(std)
    got = table_probabilities(sampler)
    assert set(got) <= set(wanted)
    distance = sum(abs(got.get(k, Fraction(0)) - p) for k, p in wanted.items()) / 2
    assert distance < Fraction(1, 1 << 53)
    assert all(got[k] == got[-k] for k in got)
    assert all(p > 0 for p in got.values())
    assert sampler._table.size < 1 << 16  # the guide is 16 bits wide
    assert sampler._offset < 900


@pytest.mark.parametrize(("std", "bits"), [(0.4, 60), (0.5434, 60), (3.2, 63), (6.4, 63), (TABLE_STD, 64.5)])
def test_the_tail_beyond_the_table_is_as_small_as_stated(std, bits):
    beyond = sum(p for k, p in exact(std).items() if abs(k) > max(1, int(TAIL * std)))
    assert 0 < beyond < 2.0**-bits


@pytest.mark.parametrize("std", [1e-9, 0.05, 0.1, 0.106, 0.11])
def test_a_narrow_one_is_almost_always_zero(std):
    assert set(Gaussian(std).sample(expand_words(bytes(32), 100)).tolist()) == {0}


def test_a_shorter_tail_cuts_the_support():
    sampler = Gaussian(6.4, tail=8)
    assert max(table_probabilities(sampler)) == int(8 * 6.4)
    words = np.array([0, (1 << 64) - 1], dtype=np.uint64)
    assert sampler.sample(words).tolist() == [-51, 51]


def levels(std: float) -> list[tuple[int, float]]:
    """(factor, standard deviation that it convolves), from the table that is really used."""
    factors = Gaussian(std).factors
    reached = std / prod(sqrt(1 + k * k) for k in factors)
    out = []
    for k in factors:
        out.append((k, reached))
        reached *= sqrt(1 + k * k)
    return out


@pytest.mark.parametrize("decade", range(9))
def test_every_convolution_meets_micciancio_and_walter(decade):
    """k <= std / (sqrt(2) * eta) at every level, with the lowered table; and the product is the std asked for."""
    for std in [*(10.0**decade * np.geomspace(1, 10, 12)).tolist(), 96.0, 96.00001, 135.7645, 135.765, 214.66]:
        walked = levels(std)
        assert all(1 <= k <= reached / MAX_RATIO for k, reached in walked), std
        base = walked[0][1] if walked else std
        assert base <= TABLE_STD * (1 + 1e-12)
        assert not walked or base >= TABLE_STD / sqrt(5 / 2) * (1 - 1e-12)
        assert base * prod(sqrt(1 + k * k) for k, _ in walked) == pytest.approx(std, rel=1e-12)
        sampler = Gaussian(std)
        assert sampler.words == 2 ** len(walked)
        variance = float(sum(k * k * p for k, p in table_probabilities(sampler).items()))
        if base > 2:  # below, the discrete variance differs from the parameter
            assert sqrt(variance) == pytest.approx(base, rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 3.2, 6.4, 25.0])
def test_samples_follow_the_exact_distribution(std):
    count = 200_000
    samples = Gaussian(std).sample(expand_words(bytes(32), count))
    wanted = exact(std)
    counts = np.array([np.count_nonzero(samples == k) for k in wanted])
    assert counts.sum() == count
    statistic, limit = chi_square(counts, count * np.array([float(p) for p in wanted.values()]))
    assert statistic < limit


def binned(samples: np.ndarray, std: float, assumed: float) -> tuple[float, float]:
    """Chi-square over bins a quarter of `std` wide; the point masses of a bin by midpoint edges."""
    width = max(1, round(std / 4))
    edges = (np.arange(-24, 25) * width).tolist()
    cuts = [-np.inf, *edges, np.inf]
    counts = np.histogram(samples, bins=np.array([-(2.0**62), *edges, 2.0**62]))[0]
    if assumed < 5000:
        reach = int(12 * assumed)
        points = np.arange(-reach, reach + 1)
        mass = np.array([exp(-(k * k) / (2 * assumed * assumed)) for k in points.tolist()])
        mass /= mass.sum()
        wanted = np.array([mass[(points >= a) & (points < b)].sum() for a, b in itertools.pairwise(cuts)])
    else:  # integers a <= k < b lie between a - 1/2 and b - 1/2
        below = [0.5 * (1 + erf((e - 0.5) / (assumed * sqrt(2)))) for e in edges]
        wanted = np.diff([0.0, *below, 1.0])
    return chi_square(counts, wanted * samples.size)


@pytest.mark.parametrize("std", [96.5, 137.0, 215.0, 1000.0, 54_321.0, 1e6, 3e7])
def test_convolved_samples_follow_the_exact_distribution(std):
    sampler = Gaussian(std)
    assert sampler.factors
    samples = sampler.sample(expand_words(b"\x07" * 32, 100_000 * sampler.words))
    assert samples.size == 100_000
    statistic, limit = binned(samples, std, std)
    assert statistic < limit
    statistic, limit = binned(samples, std, std * 1.03)  # the test can tell 3 percent
    assert statistic > limit


def test_neighbouring_values_of_a_convolution_are_equally_smooth():
    """A factor too large would leave combs: residues modulo k that come up less often."""
    std = 1000.0
    sampler = Gaussian(std)
    (k,) = sampler.factors
    samples = sampler.sample(expand_words(b"\x09" * 32, 400_000))
    counts = np.bincount(samples % k, minlength=k).astype(float)
    statistic, limit = chi_square(counts, np.full(k, samples.size / k))
    assert statistic < limit


@pytest.mark.parametrize("std", [0.4, 3.2, 96.0, 137.0, 1000.0, 1e6])
def test_the_kernel_is_a_plain_bisection(std):
    """At every boundary of the table and of the guide, and one to either side."""
    sampler = Gaussian(std)
    table = sampler._table.tolist()
    starts = [i * ((1 << 64) // GUIDE) for i in range(0, GUIDE, 64)]
    edges = [e + d for e in table + starts for d in (-1, 0, 1) if 0 <= e + d < 1 << 64] + [0, (1 << 64) - 1]
    edges += [edges[0]] * (-len(edges) % sampler.words)
    weights = [prod(k for level, k in enumerate(sampler.factors) if i >> level & 1) for i in range(sampler.words)]
    plain = [bisect_right(table, word) - sampler._offset for word in edges]
    wanted = [
        sum(w * x for w, x in zip(weights, plain[i : i + sampler.words], strict=True))
        for i in range(0, len(plain), sampler.words)
    ]
    assert sampler.sample(np.array(edges, dtype=np.uint64)).tolist() == wanted


def test_samples_depend_on_nothing_but_the_words():
    words = expand_words(b"\x01" * 32, 64)
    np.testing.assert_array_equal(Gaussian(500.0).sample(words), Gaussian(500.0).sample(words))
    assert Gaussian(3.2).sample(words[:0]).size == 0
