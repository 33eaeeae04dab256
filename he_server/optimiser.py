"""From an opened integer sum to the next model: pure numpy, no I/O.

FedAvgM (Hsu, Qi, Brown 2019): velocity = momentum * velocity + mean; model += learning_rate * velocity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from he_protocol.problems import BAD_TENSORS, COMBINE_REFUSED, Refusal
from he_protocol.quantise import Floats, Integers, dequantise
from he_protocol.task import TaskConfig, TensorSpec

Tensors: TypeAlias = Mapping[str, Floats]


def check_tensors(tensors: Mapping[str, npt.NDArray[np.generic]], specs: Sequence[TensorSpec]) -> None:
    """Raises `bad-tensors` unless names, shapes and dtype are the task's and all values are finite."""
    wanted = {spec.name: tuple(spec.shape) for spec in specs}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in wanted.keys() | got.keys():
        if wanted.get(name) != got.get(name):
            raise Refusal(BAD_TENSORS, f"tensor {name!r}", expected=wanted.get(name, ""), got=got.get(name, ""))
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise Refusal(BAD_TENSORS, f"tensor {name!r}", expected="float32", got=tensor.dtype)
        if not np.isfinite(tensor).all():
            raise Refusal(BAD_TENSORS, f"tensor {name!r} has a value that is not finite")


def mean_update(opened: Integers, count: int, config: TaskConfig) -> npt.NDArray[np.float64]:
    """The mean behind an opened sum of `count` updates, shape (parameters,).

    With weighting "examples" every client sent w*x and, last, w*value_range with w = min(examples, cap)/cap.
    Raises `combine-refused` when the summed weight is not positive.
    """
    total = dequantise(opened, config.scale)
    if config.weighting == "uniform":
        return np.asarray(total / count)
    if config.weighting == "fixed":
        return np.asarray(total / config.weight_cap)
    weight = float(total[-1]) / config.value_range
    if not weight > 0:
        raise Refusal(COMBINE_REFUSED, "the summed weight is not positive", expected="> 0", got=f"{weight:.6g}")
    return np.asarray(total[:-1] / weight)


def next_model(
    model: Tensors, velocity: Floats, mean: npt.NDArray[np.float64], config: TaskConfig
) -> tuple[dict[str, Floats], Floats]:
    """The next model and velocity; both arguments are left as they are.

    `velocity` and `mean` have shape (parameters,), tensors in the order of the task's layout.
    Raises `combine-refused` when the model would leave the range of float32.
    """
    step = config.optimiser
    moved = (step.momentum * velocity.astype(np.float64) + mean).astype(np.float32)
    out: dict[str, Floats] = {}
    at = 0
    for spec in config.tensors:
        change = np.float32(step.learning_rate) * moved[at : at + spec.size].reshape(spec.shape)
        out[spec.name] = (model[spec.name] + change).astype(np.float32)
        at += spec.size
        if not np.isfinite(out[spec.name]).all():
            raise Refusal(COMBINE_REFUSED, f"tensor {spec.name!r} would leave the range of float32")
    return out, moved
