"""From the opened integer sums of a round to the next model: pure numpy, no I/O, over any run of coordinates.

FedAvgM (Hsu, Qi, Brown 2019): velocity = momentum * velocity + mean; model += learning_rate * velocity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from he_protocol.config import Optimiser, TaskConfig, TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats, Integers, dequantise
from he_protocol.problems import BAD_TENSORS, COMBINE_REFUSED

Mean: TypeAlias = npt.NDArray[np.float64]


def check_tensors(tensors: Mapping[str, npt.NDArray[np.generic]], specs: Sequence[TensorSpec]) -> None:
    """Raises `bad-tensors` unless names, shapes and dtype are the task's and all values are finite."""
    wanted = {spec.name: tuple(spec.shape) for spec in specs}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in wanted.keys() | got.keys():
        if wanted.get(name) != got.get(name):
            raise ProblemError(BAD_TENSORS, f"tensor {name!r}", expected=wanted.get(name, ""), got=got.get(name, ""))
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ProblemError(BAD_TENSORS, f"tensor {name!r}", expected="float32", got=tensor.dtype)
        if not np.isfinite(tensor).all():
            raise ProblemError(BAD_TENSORS, f"tensor {name!r} has a value that is not finite")


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

    A bucket's part of a "fixed" weight is its part of the round's updates. With weighting "examples" every client
    sent w*x and, last, w*value_range with w = min(examples, cap)/cap.
    Raises `combine-refused` when the weight is not positive, or impossible for `count` updates.
    """
    weight = float(count)
    if config.aggregation.weighting == "examples":
        least, most = config.sum_plan.weights(config.encryption.scale, count, config.aggregation.weight_cap)
        if not max(least, 0.0) < final <= most:
            raise ProblemError(
                COMBINE_REFUSED,
                f"{count} updates cannot have this summed weight; a share, or a client's weight, is wrong",
                expected=f"positive, {least:.6g} to {most:.6g}",
                got=final,
            )
        weight = final / config.encryption.scale / config.aggregation.value_range
    elif config.aggregation.weighting == "fixed":
        weight = config.aggregation.weight_cap * count / of
    return weight


def largest_mean(config: TaskConfig) -> float:
    """The largest coordinate that the mean of honest updates can have, noise aside.

    A client's coordinate is at most `value_range`, so an average is. With "fixed" the sum is divided by another number
    than that of the updates, of which there are at most `max_clients` for the whole of `weight_cap`.
    """
    return config.aggregation.value_range * (
        config.rounds.max_clients / config.aggregation.weight_cap if config.aggregation.weighting == "fixed" else 1.0
    )


def mean_of(sums: Sequence[Integers], weights: Sequence[float], config: TaskConfig) -> Mean:
    """The round's mean from its buckets' sums and weights: of all updates, or robustly of the buckets' means.

    Coordinate-wise median and trimmed mean (Yin, Chen, Ramchandran, Bartlett 2018) of k means: sorted, the
    smallest and largest left out. With fewer than three means nothing can be left out.
    Whatever was sent, no coordinate exceeds ±`largest_mean`: the honest mean is in that box, so noise that is cut off
    only brings the result closer to it.
    """
    largest = largest_mean(config)
    if config.aggregation.combination == "mean":
        return np.clip(dequantise(reduce(np.add, sums), config.encryption.scale) / sum(weights), -largest, largest)
    means = np.empty((len(sums), sums[0].size), dtype=np.float64)
    for mean, total, weight in zip(means, sums, weights, strict=True):
        np.divide(dequantise(total, config.encryption.scale), weight, out=mean)
    np.clip(means, -largest, largest, out=means)
    means.sort(axis=0)
    middle = (len(means) - 1) // 2
    trim = middle if config.aggregation.combination == "median" else min(max(1, len(means) // 4), middle)
    kept = means[trim : len(means) - trim]
    return np.asarray(reduce(np.add, kept) / len(kept))


def step(model: Floats, velocity: Floats, mean: Mean, optimiser: Optimiser) -> tuple[Floats, Floats]:
    """The next model and velocity; the arguments are left as they are, all of one shape.

    Raises `combine-refused` when the model would leave the range of float32.
    """
    moved = (optimiser.momentum * velocity.astype(np.float64) + mean).astype(np.float32)
    after = (model + np.float32(optimiser.learning_rate) * moved).astype(np.float32)
    if not np.isfinite(after).all():
        raise ProblemError(COMBINE_REFUSED, "the model would leave the range of float32")
    return after, moved
