"""Named tensors and the flat vector that travels: concatenated in the task's order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_TENSORS
from he_protocol.task import Task

Tensors = Mapping[str, npt.NDArray[np.float32]]


def flatten(task: Task, tensors: Tensors) -> Floats:
    """One float32 vector of shape (task.parameters,).

    Raises `bad-tensors` when names or shapes are not the task's.
    """
    check_shapes(task, tensors)
    specs = task.config.model.tensors
    with np.errstate(all="ignore"):  # what does not fit into float32 becomes infinite, and is judged with the rest
        return np.concatenate([np.asarray(tensors[spec.name], dtype=np.float32).reshape(-1) for spec in specs])


def check_shapes(task: Task, tensors: Tensors) -> None:
    """Raises `bad-tensors` when names or shapes are not the task's."""
    specs = task.config.model.tensors
    expected = {spec.name: spec.shape for spec in specs}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if got != expected:
        differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise ProblemError(BAD_TENSORS, f"these differ: {', '.join(differing)}", expected=expected, got=got)


def unflatten(task: Task, vector: Floats) -> dict[str, npt.NDArray[np.float32]]:
    """Inverse of `flatten`."""
    out, at = {}, 0
    for spec in task.config.model.tensors:
        out[spec.name] = vector[at : at + spec.size].reshape(spec.shape)
        at += spec.size
    return out
