"""Integer discrete Gaussians from uniform words: a table, and convolutions of it.

`Gaussian(std)` draws D_Z,std. Up to `TABLE_STD` it inverts a cumulative table of 64-bit integers (16
random bits decide nearly always, the other 48 are drawn only where they do not):
statistical distance to the exact distribution below 2^-53 (at most one unit of 2^-64 for each of
fewer than 900 entries, and the tail beyond `TAIL` standard deviations). Wider ones are sums x1 + k*x2 of two narrower
ones (Micciancio and Walter, CRYPTO 2017, "Gaussian sampling over the integers", corollary of
theorem 3): the sum is within max-log distance 2*2^-64 of the discrete Gaussian when
k <= std / (sqrt(2) * eta), where eta = 1.511 is the smoothing parameter of Z for epsilon = 2^-64,
expressed as a standard deviation.

The words must come from a CSPRNG wherever the sample is secret; this module only transforms them.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import accumulate
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel

TABLE_STD = 96.0
TAIL = 9.2
"""Tables end here, in standard deviations: P(|x| > 9.2 std) is 2^-64.6 for wide ones, below 2^-60 for all."""
MAX_RATIO = sqrt(2) * 1.511

LANE_BITS = 16
"""Bits that decide most samples; the rest take 48 more."""
UNDECIDED = -(1 << 15)

Words = npt.NDArray[np.uint64]
Samples = npt.NDArray[np.int64]
Draws = npt.NDArray[np.int16]


class Table(NamedTuple):
    """Inversion of one cumulative table.

    cumulative: probabilities scaled to 2^64, the last one implied. direct: what the top 16 bits decide, or
    `UNDECIDED`. first: for the same bits, the first entry that the whole word may stay below. bound: entry k is
    for the value k - bound.
    """

    cumulative: Words
    direct: Draws
    first: Draws
    bound: int


class Gaussian:
    """A sampler of the centred discrete Gaussian over Z with standard deviation parameter `std` > 0.

    >>> Gaussian(3.2).sample(np.zeros(Gaussian(3.2).words(2), dtype=np.uint64), 2)
    array([-29, -29])
    """

    def __init__(self, std: float, tail: float = TAIL) -> None:
        self.std = std
        self.factors = tuple(_factors(std))
        base = std
        for factor in self.factors:
            base /= sqrt(1 + factor * factor)
        self._table = _table(base, tail)
        self._undecided = float(np.count_nonzero(self._table.direct == UNDECIDED)) / (1 << LANE_BITS)
        self._weights = np.ones(1 << len(self.factors), dtype=np.int64)
        for level, factor in enumerate(self.factors):
            self._weights[(np.arange(self._weights.size) >> level) & 1 == 1] *= factor

    def words(self, count: int) -> int:
        """Uniform 64-bit words that `sample` needs for `count` samples.

        One 16-bit lane for each draw from the table, and spare words for undecided draws: their expected
        number and 14 standard deviations more.
        """
        lanes = count * self._weights.size
        undecided = lanes * self._undecided
        return ceil(lanes * LANE_BITS / 64) + int(undecided + 14 * sqrt(undecided)) + 64

    def sample(self, words: Words, count: int) -> Samples:
        """`count` int64 samples from `self.words(count)` words; deterministic in the words."""
        out = np.zeros(count, dtype=np.int64)
        self.add(out, words)
        return out

    def add(self, totals: Samples, words: Words) -> None:
        """Add to each of `totals` the sample that `sample` makes of the same words."""
        used = ceil(totals.size * self._weights.size * LANE_BITS / 64)
        if words.size < used or not _add(totals, words[:used].view("<u2"), words[used:], *self._table, self._weights):
            raise RuntimeError("not enough uniform words for this many samples")


def _factors(std: float) -> list[int]:
    """Multipliers k of the convolutions, innermost first, that lead from the table up to `std`.

    Every level but the last takes the largest ratio allowed, the last what is still needed. The
    table's own deviation is then lowered so that the product is `std` exactly, by at most
    sqrt(5/2) (the step from k=1 to k=2), so ratios are chosen for a table lowered by that much.
    """
    factors: list[int] = []
    reached, lowered = TABLE_STD, TABLE_STD / sqrt(5 / 2)
    while reached < std:
        needed = ceil(sqrt(max((std / reached) ** 2 - 1, 1)))
        factors.append(min(int(lowered / MAX_RATIO), needed))
        reached *= sqrt(1 + factors[-1] ** 2)
        lowered *= sqrt(1 + factors[-1] ** 2)
    return factors


@lru_cache(maxsize=32)
def _table(std: float, tail: float) -> Table:
    """The table of -bound..bound, computed to 40 decimal digits: doubles would limit the distance to 2^-52."""
    bound = max(1, int(tail * std))
    with localcontext(prec=40):
        variance = Decimal(std) ** 2
        weights = [(-Decimal(k * k) / (2 * variance)).exp() for k in range(bound, 0, -1)]
        total = 2 * sum(weights) + 1
        scaled = [int(w / total * (1 << 64)) for w in weights]
    lower = [w for w in scaled if w]
    centre = (1 << 64) - 2 * sum(lower)
    cumulative = np.array(list(accumulate([*lower, centre, *lower[:0:-1]]))[: 2 * len(lower)], dtype=np.uint64)
    starts = np.arange(1 << LANE_BITS, dtype=np.uint64) << np.uint64(64 - LANE_BITS)
    ends = starts + np.uint64((1 << (64 - LANE_BITS)) - 1)
    first, last = (np.searchsorted(cumulative, edges, side="right") for edges in (starts, ends))
    direct = np.where(first == last, first - len(lower), UNDECIDED).astype(np.int16)
    return Table(cumulative, direct, first.astype(np.int16), len(lower))


@kernel
def _add(
    totals: Samples,
    lanes: npt.NDArray[np.uint16],
    spare: Words,
    cumulative: Words,
    direct: Draws,
    first: Draws,
    bound: int,
    weights: Samples,
) -> bool:
    """Add the draws of each level, `totals.size` of them, times their weight; False when spare words run out.

    An undecided lane takes 48 bits more, from the next spare word.
    """
    used = 0
    for level in range(weights.size):
        weight, start = weights[level], level * totals.size
        for i in range(totals.size):
            lane = lanes[start + i]
            draw = np.int64(direct[lane])
            if draw == UNDECIDED:
                if used == spare.size:
                    return False
                word = (np.uint64(lane) << np.uint64(48)) | (spare[used] >> np.uint64(16))
                used += 1
                entry = np.int64(first[lane])
                while entry < cumulative.size and cumulative[entry] <= word:
                    entry += 1
                draw = entry - bound
            totals[i] += weight * draw
    return True
