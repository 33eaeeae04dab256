"""How the opened sums of a round's buckets become the round's mean, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from he_protocol.privacy.quantise import Integers, dequantise

Mean: TypeAlias = npt.NDArray[np.float64]
CombinationName: TypeAlias = Literal["mean", "median", "trimmed-mean"]


class Combination(Protocol):
    @property
    def least_buckets(self) -> int:
        """How many buckets a task needs for it."""

    @property
    def linear(self) -> bool:
        """Whether the mean of rotated updates is the rotated mean."""

    def combine(self, sums: Sequence[Integers], weights: Sequence[float], scale: float, largest: float) -> Mean:
        """The round's mean from its buckets' sums and weights.

        Whatever was sent, no coordinate exceeds ±`largest`: the honest mean is in that box, so noise that is cut off
        only brings the result closer to it.
        """


class MeanOfAll:
    """The mean of all updates."""

    least_buckets = 1
    linear = True

    def combine(self, sums: Sequence[Integers], weights: Sequence[float], scale: float, largest: float) -> Mean:
        return np.clip(dequantise(reduce(np.add, sums), scale) / sum(weights), -largest, largest)


@dataclass(frozen=True)
class MiddleOfBuckets:
    """The mean of the buckets' means less the smallest and largest (Yin, Chen, Ramchandran, Bartlett 2018).

    left_out: of so many means, how many at each end.
    """

    left_out: Callable[[int], int]
    least_buckets = 3
    """With fewer, nothing can be left out."""
    linear = False

    def combine(self, sums: Sequence[Integers], weights: Sequence[float], scale: float, largest: float) -> Mean:
        means = np.empty((len(sums), sums[0].size), dtype=np.float64)
        for mean, total, weight in zip(means, sums, weights, strict=True):
            np.divide(dequantise(total, scale), weight, out=mean)
        np.clip(means, -largest, largest, out=means)
        means.sort(axis=0)
        trim = self.left_out(len(means))
        kept = means[trim : len(means) - trim]
        return np.asarray(reduce(np.add, kept) / len(kept))


def all_but_the_middle(count: int) -> int:
    """Of `count` means, all but one or two: what is left is their median.

    >>> [all_but_the_middle(count) for count in (1, 2, 3, 4, 5)]
    [0, 0, 1, 1, 2]
    """
    return (count - 1) // 2


def a_quarter(count: int) -> int:
    """A quarter of `count` means, rounded down, at least one, if one or two are left.

    >>> [a_quarter(count) for count in (1, 2, 3, 4, 8)]
    [0, 0, 1, 1, 2]
    """
    return min(max(1, count // 4), all_but_the_middle(count))


COMBINATIONS: dict[CombinationName, Combination] = {
    "mean": MeanOfAll(),
    "median": MiddleOfBuckets(all_but_the_middle),
    "trimmed-mean": MiddleOfBuckets(a_quarter),
}
