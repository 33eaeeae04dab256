"""Integer discrete Gaussians from uniform 64-bit words: a table, and convolutions of it.

`Gaussian(std)` draws D_Z,std. Up to `TABLE_STD` it inverts a cumulative table of 64-bit integers:
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

import numpy as np
import numpy.typing as npt

from he_protocol.kernel import kernel

TABLE_STD = 96.0
TAIL = 9.2
"""Tables end here, in standard deviations: P(|x| > 9.2 std) is 2^-64.6 for wide ones, below 2^-60 for all."""
MAX_RATIO = sqrt(2) * 1.511

GUIDE_BITS = 12
GUIDE = 1 << GUIDE_BITS

Words = npt.NDArray[np.uint64]
Guide = npt.NDArray[np.uint16]


class Gaussian:
    """A sampler of the centred discrete Gaussian over Z with standard deviation parameter `std` > 0.

    >>> Gaussian(3.2).words
    1
    """

    def __init__(self, std: float, tail: float = TAIL) -> None:
        self.std = std
        self.factors = tuple(_factors(std))
        base = std
        for factor in self.factors:
            base /= sqrt(1 + factor * factor)
        self._table, self._guide, self._offset = _table(base, tail)

    @property
    def words(self) -> int:
        """Uniform 64-bit words needed per sample."""
        return 1 << len(self.factors)

    def sample(self, words: Words) -> npt.NDArray[np.int64]:
        """One int64 sample for each `self.words` words; deterministic in the words."""
        out = np.empty(words.size // self.words, dtype=np.int64)
        factors = np.array(self.factors, dtype=np.int64)
        weights = np.ones(self.words, dtype=np.int64)
        for level, factor in enumerate(factors):
            weights[(np.arange(self.words) >> level) & 1 == 1] *= factor
        _sample(words, self._table, self._guide, self._offset, weights, out)
        return out


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
def _table(std: float, tail: float) -> tuple[Words, Guide, int]:
    """Cumulative probabilities of -bound..bound scaled to 2^64 (the last is implied), and a guide to them.

    Computed to 40 decimal digits: doubles would limit the statistical distance to 2^-52.
    """
    bound = max(1, int(tail * std))
    with localcontext(prec=40):
        variance = Decimal(std) ** 2
        weights = [(-Decimal(k * k) / (2 * variance)).exp() for k in range(bound, 0, -1)]
        total = 2 * sum(weights) + 1
        scaled = [int(w / total * (1 << 64)) for w in weights]
    lower = [w for w in scaled if w]
    centre = (1 << 64) - 2 * sum(lower)
    cumulative = list(accumulate([*lower, centre, *lower[:0:-1]]))[: 2 * len(lower)]
    table = np.array(cumulative, dtype=np.uint64)
    starts = np.arange(GUIDE, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    return table, np.searchsorted(table, starts, side="right").astype(np.uint16), len(lower)


@kernel
def _sample(
    words: Words, table: Words, guide: Guide, offset: int, weights: npt.NDArray[np.int64], out: npt.NDArray[np.int64]
) -> None:
    shift = np.uint64(64 - GUIDE_BITS)
    last = table.size
    for i in range(out.size):
        total = np.int64(0)
        for level in range(weights.size):
            word = words[i * weights.size + level]
            index = np.int64(guide[word >> shift])
            while index < last and table[index] <= word:
                index += 1
            total += weights[level] * (index - offset)
        out[i] = total
