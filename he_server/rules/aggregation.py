"""From the opened integer sums of a round to its mean: pure numpy, no I/O, over any run of coordinates."""

from __future__ import annotations

from collections.abc import Sequence

from he_protocol.aggregation.combination import Mean
from he_protocol.config import TaskConfig
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import COMBINE_REFUSED


def check_range(opened: Integers, largest: float) -> None:
    """Raises `combine-refused` when integers cannot be of a sum of honest updates."""
    worst = max(int(opened.max(initial=0)), -int(opened.min(initial=0)))
    if worst > largest:
        raise ProblemError(
            COMBINE_REFUSED,
            "the opened integers are out of range; a share, or a client's update, is wrong",
            expected=f"up to {largest:.0f}",
            got=worst,
        )


def weight_of(config: TaskConfig, final: int, count: int, of: int) -> float:
    """What the opened sum of a bucket of `count` of a round's `of` updates is divided by; `final` is its last integer.

    Raises `combine-refused` for what `count` honest updates cannot come to.
    """
    return config.aggregation.load_weighting().weight(config.sum_plan, config.encryption.scale, final, count, of)


def largest_mean(config: TaskConfig) -> float:
    """The largest coordinate that the mean of honest updates can have, noise aside."""
    return config.aggregation.load_weighting().largest_mean(config.rounds.max_clients)


def mean_of(sums: Sequence[Integers], weights: Sequence[float], config: TaskConfig) -> Mean:
    """The round's mean from its buckets' sums and weights, as the task combines them; see `Combination`."""
    combination = config.aggregation.load_combination()
    return combination.combine(sums, weights, config.encryption.scale, largest_mean(config))
