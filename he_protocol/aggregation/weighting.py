"""How much each update counts.

A weighting says what a client appends to its update, what that takes of a sum, and what an opened sum is divided by
(section 3 of the design). Whatever depends on which one a task has is here: everybody else asks the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Literal, Protocol, TypeAlias

import numpy as np

from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED
from he_protocol.sum_bounds import SumPlan

LEAST_WEIGHT = 32.0
"""The least weight of one example, in standard deviations of the rounding and the scheme's error of its update."""

WeightingName: TypeAlias = Literal["uniform", "examples", "fixed"]


class Weighting(Protocol):
    """What a client's weight is a fraction of: 1 is the largest that an update may have."""

    @property
    def appended(self) -> int:
        """Coordinates of the vector after the model's."""

    @property
    def appended_range(self) -> float:
        """The largest absolute value of what is appended, as an L2 norm: it adds to an update's sensitivity."""

    @property
    def uses_cap(self) -> bool:
        """Whether `weight_cap` means anything: then no default of it is what a plan can have meant."""

    def check(self, sums: SumPlan, scale: float) -> None:
        """Refuse a task whose sums it cannot weigh. Raises `bad-plan`."""

    def check_examples(self, examples: float | None) -> None:
        """Refuse a client's number of examples that is of no use. Raises `bad-plan`."""

    def fraction(self, examples: float | None) -> float:
        """An update's weight, as a fraction: 0 for a number of examples that is of no use.

        Raises `bad-plan` for any number, where the task does not weigh by it: that depends on no data.
        """

    def tail(self, fraction: float) -> Floats:
        """What a client appends, float32, shape (appended,)."""

    def weight(self, sums: SumPlan, scale: float, final: int, count: int, of: int) -> float:
        """What the opened sum of a bucket of `count` of a round's `of` updates is divided by; `final` is its last
        integer.

        Raises `combine-refused` for what `count` honest updates cannot come to.
        """

    def largest_mean(self, max_clients: int) -> float:
        """The largest coordinate that the mean of honest updates can have, noise aside."""


@dataclass(frozen=True)
class Uniform:
    """Every update counts the same: a sum is divided by the number of its updates."""

    value_range: float
    cap: float
    appended = 0
    appended_range = 0.0
    uses_cap = False

    def check(self, sums: SumPlan, scale: float) -> None:
        """Any task will do."""

    def check_examples(self, examples: float | None) -> None:
        """See `fraction`."""

    def fraction(self, examples: float | None) -> float:
        if examples is not None:
            raise ProblemError(BAD_PLAN, "a number of examples goes with weighting 'examples' only")
        return 1.0

    def tail(self, fraction: float) -> Floats:
        return np.empty(0, dtype=np.float32)

    def weight(self, sums: SumPlan, scale: float, final: int, count: int, of: int) -> float:
        return float(count)

    def largest_mean(self, max_clients: int) -> float:
        """A client's coordinate is at most `value_range`, so an average is."""
        return self.value_range


@dataclass(frozen=True)
class Fixed(Uniform):
    """A round is divided by `cap`, a bucket of it by its part of the updates: for DP-FedSGD, `cap` is the number of
    records that are expected to be sampled over all clients."""

    uses_cap = True

    def weight(self, sums: SumPlan, scale: float, final: int, count: int, of: int) -> float:
        return self.cap * count / of

    def largest_mean(self, max_clients: int) -> float:
        """The divisor is not the number of updates, of which there are at most `max_clients` for all of `cap`."""
        return self.value_range * (max_clients / self.cap)


@dataclass(frozen=True)
class Examples:
    """Updates count by their examples, each at most `cap`; a sum is divided by the summed weight.

    With w = min(examples, cap)/cap a client sends w*x and, last, w*value_range, so that nobody sees its number.
    """

    value_range: float
    cap: float
    appended = 1
    uses_cap = True

    @property
    def appended_range(self) -> float:
        return self.value_range

    def check(self, sums: SumPlan, scale: float) -> None:
        if sums.privacy.unit == "record":
            raise ProblemError(
                BAD_PLAN, "record-level privacy hides how many records a client has", expected="weighting 'fixed'"
            )
        self.check_cap(sums, scale)

    def check_cap(self, sums: SumPlan, scale: float) -> None:
        """Refuse a cap under which the weight of one example drowns in rounding and the scheme's error.

        Not in DP noise: that hides any one client's weight, as it must. Raises `bad-plan`.
        """
        most = scale * self.value_range / (LEAST_WEIGHT * hypot(sums.scheme.error_std, 0.5))
        if self.cap > most:
            raise ProblemError(
                BAD_PLAN,
                "the weight of one example drowns in rounding and the scheme's error; lower aggregation.weight_cap",
                expected=f"weight_cap up to {most:.4g}",
                got=f"{self.cap:.4g}",
            )

    def check_examples(self, examples: float | None) -> None:
        if examples is None:
            raise ProblemError(BAD_PLAN, "a number of examples goes with weighting 'examples'")
        if self.fraction(examples) == 0:
            raise ProblemError(BAD_PLAN, "the number of examples must be a positive number", got=examples)

    def fraction(self, examples: float | None) -> float:
        try:
            given = 0.0 if examples is None else float(min(examples, self.cap))
        except (TypeError, ValueError, OverflowError, ArithmeticError):  # a training function may give anything
            return 0.0
        return given / self.cap if given > 0 else 0.0

    def tail(self, fraction: float) -> Floats:
        return np.array([fraction * self.value_range], dtype=np.float32)

    def weight(self, sums: SumPlan, scale: float, final: int, count: int, of: int) -> float:
        self.check_summed(sums, scale, final, count)
        return final / scale / self.value_range

    def check_summed(self, sums: SumPlan, scale: float, final: int, count: int) -> None:
        """Refuse a summed weight that is not positive, or impossible for `count` updates."""
        least, most = self.summed(sums, scale, count)
        if not max(least, 0.0) < final <= most:
            raise ProblemError(
                COMBINE_REFUSED,
                f"{count} updates cannot have this summed weight; a share, or a client's weight, is wrong",
                expected=f"positive, {least:.6g} to {most:.6g}",
                got=final,
            )

    def summed(self, sums: SumPlan, scale: float, count: int) -> tuple[float, float]:
        """Between which integers the summed weight of `count` honest updates lies.

        An update weighs at most 1, which is value_range * scale; all of them together at least half of one example,
        less what DP noise may take away (then the lower end may be negative).
        """
        one, tail = scale * self.value_range, sums.tail(scale, count)
        return one / self.cap / 2 - (tail if sums.privacy.noisy else 0.0), count * (one + 1) + tail

    def largest_mean(self, max_clients: int) -> float:
        """An average of coordinates that are at most `value_range`."""
        return self.value_range


WEIGHTINGS: dict[WeightingName, type[Uniform] | type[Examples]] = {
    "uniform": Uniform,
    "examples": Examples,
    "fixed": Fixed,
}


def load_weighting(name: WeightingName, value_range: float, cap: float) -> Weighting:
    """A weighting by the name in a task's configuration."""
    return WEIGHTINGS[name](value_range, cap)
