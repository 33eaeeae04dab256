"""Named tensors and the flat vector that travels: concatenated in the task's order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt

from he_client.arrays import as_float32
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_TENSORS
from he_protocol.task import Task
from he_protocol.tensors import check_shapes

log = logging.getLogger("he-client")

Tensors = Mapping[str, Any] | Sequence[Any]
"""Arrays of any library by the task's names, or a list of them in the task's order; see `he_client.arrays`."""


def flatten(task: Task, tensors: Tensors) -> Floats:
    """One float32 vector of shape (task.parameters,).

    Raises `bad-tensors` when names, shapes or types are not the task's. What cannot be read all the same is refused,
    too; under a DP plan it is taken for NaN, which is judged with the rest: that it cannot be read may depend on data.
    """
    given, expected = by_name(task, tensors), task.config.model.shapes
    if given.keys() != expected.keys():
        check_shapes({name: tuple(getattr(value, "shape", ())) for name, value in given.items()}, expected)
    arrays = {spec.name: _read(task, spec, given[spec.name]) for spec in task.config.model.tensors}
    check_shapes({name: array.shape for name, array in arrays.items()}, expected)
    return np.concatenate([array.reshape(-1) for array in arrays.values()])


def by_name(task: Task, tensors: Tensors) -> Mapping[str, Any]:
    """A list in the task's order as a dict. Raises `bad-tensors` for another length, and for what is neither."""
    names = [spec.name for spec in task.config.model.tensors]
    if isinstance(tensors, Mapping):
        return tensors
    if not isinstance(tensors, list | tuple):
        raise ProblemError(
            BAD_TENSORS,
            "an update is a dict of arrays by the task's names, or a list of them in its order",
            got=type(tensors).__name__,
        )
    if len(tensors) != len(names):
        raise ProblemError(
            BAD_TENSORS, "a list has one array for each of the task's tensors", expected=len(names), got=len(tensors)
        )
    return dict(zip(names, tensors, strict=True))


def unflatten(task: Task, vector: Floats) -> dict[str, npt.NDArray[np.float32]]:
    """Inverse of `flatten`."""
    out, at = {}, 0
    for spec in task.config.model.tensors:
        out[spec.name] = vector[at : at + spec.size].reshape(spec.shape)
        at += spec.size
    return out


def _read(task: Task, spec: TensorSpec, value: Any) -> Floats:
    try:
        return as_float32(spec.name, value)
    except ProblemError:
        raise
    except Exception as error:
        if not task.config.privacy.noisy:
            detail = f"tensor {spec.name!r} cannot be read: {error}"
            raise ProblemError(BAD_TENSORS, detail, got=type(value).__name__) from error
        log.warning("tensor %r cannot be read: %s: %s", spec.name, type(error).__name__, error)
        return np.full(spec.shape, nan, dtype=np.float32)
