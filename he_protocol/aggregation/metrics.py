"""What clients report beside an update: numbers that are known as a sum over all of them, and of nobody.

The integers of a report travel in the same encrypted vector as the model's, after them and before what the weighting
appends, under the same noise (section 3 of the design).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot, isfinite, sqrt
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from he_protocol.documents import RoundMetric
from he_protocol.errors import ProblemError
from he_protocol.messages import Message, Name
from he_protocol.privacy.quantise import Floats, Integers
from he_protocol.problems import BAD_PLAN, BAD_TENSORS
from he_protocol.sum_bounds import SumPlan

SATURATED = "saturated"
"""The metric that clients fill in themselves: the share of an update's coordinates that were cut to ±value_range."""
MAX_BINS, MAX_METRICS = 1024, 64
FEWEST_DEVIATIONS = 3.0
"""Where the noised number of reports is not this far above zero, nothing is said of their mean."""


class Metric(Message, frozen=True):
    """One number that clients report, between `low` and `high`; what lies beyond is cut to them.

    bins: 0 for the number itself, of which a round has the mean. Otherwise for any number of values, of which a
    round has a histogram: bins of equal width between low and high, and in each the mean share of a client's values.
    """

    name: Name
    low: float = 0.0
    high: float = 1.0
    bins: Annotated[int, Meta(ge=0, le=MAX_BINS)] = 0

    @property
    def size(self) -> int:
        """Coordinates of a report."""
        return self.bins or 1

    @property
    def moved(self) -> float:
        """How far two reports can lie apart, squared: a number's is at most 1/2 on either side of the middle; the
        shares of a histogram sum to 1, so two of them are at most sqrt(2) apart."""
        return 2.0 if self.bins else 1.0

    def check(self) -> None:
        """Raises `bad-plan`."""
        if not (isfinite(self.low) and isfinite(self.high) and 0 < self.high - self.low < float("inf")):
            raise ProblemError(
                BAD_PLAN, f"metric {self.name!r}", expected="low < high, both finite", got=f"{self.low}, {self.high}"
            )
        if self.bins == 1:
            raise ProblemError(BAD_PLAN, f"metric {self.name!r}", expected="0 or at least 2 bins", got=1)
        if self.name == SATURATED and (self.low, self.high, self.bins) != (0.0, 1.0, 0):
            raise ProblemError(BAD_PLAN, f"metric {SATURATED!r} is a share", expected="low 0, high 1 and no bins")

    def encode(self, value: Any) -> Floats:
        """A number as its distance from the middle, -1/2 to 1/2; values as their shares in the bins.

        Raises `bad-tensors` for what is neither, or not finite.
        """
        try:
            values = np.asarray(value, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            values = np.full(1, np.nan)
        if not values.size or not np.isfinite(values).all() or not (self.bins or values.size == 1):
            wanted = "finite numbers" if self.bins else "one finite number"
            raise ProblemError(BAD_TENSORS, f"metric {self.name!r}", expected=wanted, got=type(value).__name__)
        place = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        if not self.bins:
            return (place - 0.5).astype(np.float32)
        counts = np.bincount(np.minimum((place * self.bins).astype(np.int64), self.bins - 1), minlength=self.bins)
        return (counts / values.size).astype(np.float32)

    def decode(self, mean: Floats, error: float) -> tuple[tuple[float, ...], float]:
        """The means of `encode` in the metric's own unit, and so their standard deviation."""
        if self.bins:
            return tuple(np.clip(mean, 0.0, 1.0).tolist()), error
        width = self.high - self.low
        return (float(np.clip(self.low + width * (0.5 + float(mean[0])), self.low, self.high)),), width * error


@dataclass(frozen=True)
class Reports:
    """The metrics of a task, and what they take of its sums.

    A report is (1, encoded metrics) times `reach`; without one it is zeros. share: how much the metrics add to an
    update's sensitivity, as a part of clip_norm.
    """

    metrics: tuple[Metric, ...]
    share: float
    clip_norm: float
    """Of a plan with noise; 0 without."""
    value_range: float

    @property
    def appended(self) -> int:
        """Coordinates of the vector."""
        return 1 + sum(metric.size for metric in self.metrics) if self.metrics else 0

    @cached_property
    def reach(self) -> float:
        """What 1 is sent as. A float32, so that it is sent exactly, and rounded down, so that it bounds."""
        if not self.metrics:
            return 0.0
        wanted = self.value_range
        if self.clip_norm:
            wanted = min(wanted, self.share * self.clip_norm / sqrt(self._moved))
        return float(np.nextafter(np.float32(wanted), np.float32(0)))

    @property
    def norm(self) -> float:
        """How far a report can move, as an L2 norm: when a client's record is another, or a client is away."""
        return self.reach * sqrt(self._moved)

    @property
    def _moved(self) -> float:
        return 1.0 + sum(metric.moved for metric in self.metrics)

    def check(self) -> None:
        """Raises `bad-plan`."""
        if len(self.metrics) > MAX_METRICS:
            raise ProblemError(BAD_PLAN, "metrics", expected=f"at most {MAX_METRICS}", got=len(self.metrics))
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ProblemError(BAD_PLAN, "metric names must differ")
        for metric in self.metrics:
            metric.check()
        if self.metrics and not self.reach > 0:
            raise ProblemError(BAD_PLAN, "aggregation.metrics_share is too small", got=self.share)

    def encode(self, values: Mapping[str, Any]) -> Floats:
        """What a client appends, float32, shape (appended,).

        Raises `bad-tensors` where one of the task's metrics is missing or cannot be used.
        """
        if not self.metrics:
            return np.empty(0, dtype=np.float32)
        if missing := [metric.name for metric in self.metrics if metric.name not in values]:
            raise ProblemError(BAD_TENSORS, f"metric {missing[0]!r} is missing", got=", ".join(sorted(values)))
        encoded = [metric.encode(values[metric.name]) for metric in self.metrics]
        return np.concatenate([np.ones(1, dtype=np.float32), *encoded]) * np.float32(self.reach)

    def decode(self, sums: SumPlan, scale: float, total: Integers, updates: int) -> tuple[RoundMetric, ...]:
        """What the opened integers of `updates` updates say; `total` has shape (appended,)."""
        if not self.metrics:
            return ()
        deviation = sqrt(updates) * hypot(sums.noise_std(scale), sums.scheme.error_std, 0.5)
        one, found, at = scale * self.reach, [], 1
        told = total[0] > FEWEST_DEVIATIONS * deviation
        for metric in self.metrics:
            values: Sequence[float] = ()
            error = 0.0
            if told:
                mean = total[at : at + metric.size] / total[0]
                values, error = metric.decode(mean, deviation * hypot(1.0, float(np.abs(mean).max())) / float(total[0]))
            found.append(RoundMetric(metric.name, float(total[0]) / one, deviation / one, tuple(values), error))
            at += metric.size
        return tuple(found)
