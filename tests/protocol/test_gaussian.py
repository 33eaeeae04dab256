"""The discrete Gaussian: exact distance of its tables, conditions of its convolutions, and samples."""

from __future__ import annotations

import doctest
import itertools
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from math import ceil, erf, exp, log, prod, sqrt

import numpy as np
import pytest

from he_protocol.arithmetic.keystream import expand_words
from he_protocol.privacy import gaussian
from he_protocol.privacy.gaussian import LANE_BITS, MAX_RATIO, TABLE_STD, TAIL, UNDECIDED, Gaussian


def drawn(sampler: Gaussian, count: int, key: bytes = bytes(32)) -> np.ndarray:
    """Samples from exactly the words that they need."""
    return sampler.sample(expand_words(key, sampler.words(count)), count)


def lanes_per_sample(sampler: Gaussian) -> int:
    return 2 ** len(sampler.factors)


def crafted(sampler: Gaussian, draws: list[int]) -> np.ndarray:
    """Words under which the table is inverted at exactly these 64-bit draws, one after the other.

    The top 16 bits of a draw become its lane; the other 48 a spare word, if they are needed.
    """
    table = sampler._table.cumulative.tolist()
    lanes = [draw >> 48 for draw in draws]
    lanes += [lanes[0]] * (-len(lanes) % 4)
    packed = [sum(lane << 16 * i for i, lane in enumerate(lanes[at : at + 4])) for at in range(0, len(lanes), 4)]
    spare = [
        (draw & ((1 << 48) - 1)) << 16 | 0xABCD  # the low 16 bits of a spare word are not used
        for draw in draws
        if bisect_right(table, draw >> 48 << 48) != bisect_right(table, draw | ((1 << 48) - 1))
    ]
    return np.array(packed + spare, dtype=np.uint64)


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
    cumulative = [0, *map(int, sampler._table.cumulative), 1 << 64]
    steps = [Fraction(b - a, 1 << 64) for a, b in itertools.pairwise(cumulative)]
    return {i - sampler._table.bound: step for i, step in enumerate(steps)}


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
    assert sampler._table.bound < 900  # fits the 16 bits of the direct table, and the count in the bound above


@pytest.mark.parametrize("std", [0.3, 0.5, 1.0, 3.2, 6.4, 17.3, 60.8, TABLE_STD])
def test_sixteen_bits_decide_exactly_where_they_can(std):
    """A lane is undecided when the other 48 bits could still change the sample, and only then."""
    sampler = Gaussian(std)
    table = sampler._table.cumulative.tolist()
    for lane in range(1 << LANE_BITS):
        low, high = (bisect_right(table, lane << 48 | rest) - sampler._table.bound for rest in (0, (1 << 48) - 1))
        assert sampler._table.direct[lane] == (low if low == high else UNDECIDED), lane
    assert np.count_nonzero(sampler._table.direct == UNDECIDED) <= len(table)


def test_the_docstrings_example_is_true():
    assert doctest.testmod(gaussian) == (0, 1)


@pytest.mark.parametrize("std", [1e-9, 0.4, 6.4, TABLE_STD, 137.0, 54_321.0, 1e9])
@pytest.mark.parametrize("count", [1, 3, 64, 1 << 15, 1 << 30])
def test_spare_words_run_out_less_often_than_keys_are_guessed(std, count):
    """Chernoff: P(X >= m + x) <= exp(x - (m + x) ln(1 + x/m)) for a sum X of independent draws with mean m."""
    sampler = Gaussian(std)
    lanes = count * lanes_per_sample(sampler)
    spare = sampler.words(count) - ceil(lanes / 4)
    mean = lanes * int(np.count_nonzero(sampler._table.direct == UNDECIDED)) / (1 << LANE_BITS)
    assert spare >= 64
    if mean > 0 and lanes > spare:  # otherwise every draw that may need a spare word has one
        excess = spare - mean
        assert excess - (mean + excess) * log(1 + excess / mean) < -64 * log(2)


def test_running_out_of_words_is_an_error_and_not_a_sample():
    """Words crafted so that every lane is undecided: samples made from anything else would be biased."""
    sampler = Gaussian(6.4)
    lane = int(np.flatnonzero(sampler._table.direct == UNDECIDED)[0])
    lanes = np.full(100, lane * 0x0001_0001_0001_0001, dtype=np.uint64)  # four lanes each
    spare = expand_words(bytes(32), 400)
    enough = sampler.sample(np.concatenate([lanes, spare]), 400)
    assert len(set(enough.tolist())) > 2  # the lowest lane holds the whole tail
    with pytest.raises(RuntimeError, match="not enough"):
        sampler.sample(np.concatenate([lanes, spare[:-1]]), 400)
    with pytest.raises(RuntimeError, match="not enough"):
        sampler.sample(lanes, 400)
    as_asked = np.concatenate([lanes, np.zeros(sampler.words(400) - 100, dtype=np.uint64)])
    with pytest.raises(RuntimeError, match="not enough"):
        sampler.sample(as_asked, 400)


@pytest.mark.parametrize("words", [0, 1, 24])
def test_fewer_words_than_lanes_are_an_error_and_not_read_beyond(words):
    with pytest.raises(RuntimeError, match="not enough"):
        Gaussian(6.4).sample(np.zeros(words, dtype=np.uint64), 100)
    with pytest.raises(RuntimeError, match="not enough"):
        Gaussian(1000.0).sample(np.zeros(words, dtype=np.uint64), 50)


@pytest.mark.parametrize(("std", "bits"), [(0.4, 60), (0.5434, 60), (3.2, 63), (6.4, 63), (TABLE_STD, 64.5)])
def test_the_tail_beyond_the_table_is_as_small_as_stated(std, bits):
    beyond = sum(p for k, p in exact(std).items() if abs(k) > max(1, int(TAIL * std)))
    assert 0 < beyond < 2.0**-bits


@pytest.mark.parametrize("std", [1e-9, 0.05, 0.1, 0.106, 0.11])
def test_a_narrow_one_is_almost_always_zero(std):
    assert set(drawn(Gaussian(std), 100).tolist()) == {0}


def test_a_shorter_tail_cuts_the_support():
    sampler = Gaussian(6.4, tail=8)
    assert max(table_probabilities(sampler)) == int(8 * 6.4)
    assert sampler.sample(crafted(sampler, [0, (1 << 64) - 1]), 2).tolist() == [-51, 51]
    assert np.abs(drawn(sampler, 1_000_000)).max() <= 51


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
        assert sampler._weights.size == 2 ** len(walked)
        variance = float(sum(k * k * p for k, p in table_probabilities(sampler).items()))
        if base > 2:  # below, the discrete variance differs from the parameter
            assert sqrt(variance) == pytest.approx(base, rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 3.2, 6.4, 25.0])
def test_samples_follow_the_exact_distribution(std):
    count = 200_000
    samples = drawn(Gaussian(std), count)
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
    samples = drawn(sampler, 100_000, b"\x07" * 32)
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
    samples = drawn(sampler, 400_000, b"\x09" * 32)
    counts = np.bincount(samples % k, minlength=k).astype(float)
    statistic, limit = chi_square(counts, np.full(k, samples.size / k))
    assert statistic < limit


@pytest.mark.parametrize("std", [0.4, 3.2, 6.4, 96.0, 137.0, 1000.0, 1e6])
def test_the_kernel_is_a_plain_bisection(std):
    """At every boundary of the table and at boundaries of the lanes, and one to either side."""
    sampler = Gaussian(std)
    table, lanes = sampler._table.cumulative.tolist(), lanes_per_sample(sampler)
    starts = [i << 48 for i in range(0, 1 << LANE_BITS, 512)]
    edges = [e + d for e in table + starts for d in (-1, 0, 1) if 0 <= e + d < 1 << 64] + [0, (1 << 64) - 1]
    edges += [edges[0]] * (-len(edges) % lanes)
    weights = [prod(k for level, k in enumerate(sampler.factors) if i >> level & 1) for i in range(lanes)]
    plain = [bisect_right(table, word) - sampler._table.bound for word in edges]
    count = len(plain) // lanes
    levels = [plain[at : at + count] for at in range(0, len(plain), count)]
    wanted = [sum(w * x for w, x in zip(weights, draws, strict=True)) for draws in zip(*levels, strict=True)]
    assert sampler.sample(crafted(sampler, edges), len(wanted)).tolist() == wanted


def test_samples_depend_on_nothing_but_the_words():
    sampler = Gaussian(500.0)
    words = expand_words(b"\x01" * 32, sampler.words(64))
    np.testing.assert_array_equal(sampler.sample(words, 64), sampler.sample(words.copy(), 64))
    assert sampler.sample(words[:0], 0).size == 0


def test_one_sample_more_leaves_the_others_as_they_are():
    """Lanes first, spare words last: samples follow from their own lanes where 16 bits decide."""
    sampler = Gaussian(1.0)
    words = expand_words(b"\x02" * 32, 100)
    assert sampler.sample(words, 8).tolist() == sampler.sample(words, 9)[:8].tolist()
