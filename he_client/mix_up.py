"""Whether new weights were taken for an update, or an update for new weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import hypot
from typing import Any

import numpy as np
import numpy.typing as npt

from he_client.arrays import as_float32
from he_client.context import LocalResult

log = logging.getLogger("he-client")

NEAR = 0.5
"""Two models are near each other where their distance is less than this share of the norm of the one that came."""


def warn_of_mix_up(result: LocalResult, model: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """A line in the log where an update is near the model, or new weights are nearer to zero than to the model.

    Never more than a line: it depends on data. What cannot be read is for `flatten` to judge.
    """
    try:
        with np.errstate(all="ignore"):
            length, distance = _norms(result.tensors, model)
    except Exception as error:
        log.debug("no likeness to the model: %s", error)
        return
    if not result.weights and distance < NEAR * length:
        log.warning(
            "what training returned looks like the new weights: its norm is %.3g, its distance from the model %.3g."
            " An update is new minus old (he_client.training.difference); for new weights return"
            " LocalResult(tensors, weights=True)",
            length,
            distance,
        )
    if result.weights and length < NEAR * distance:
        log.warning(
            "the new weights that training returned look like an update: their norm is %.3g, their distance from the"
            " model %.3g. Where they are new minus old, return them without weights=True",
            length,
            distance,
        )


def _norms(tensors: Any, model: Mapping[str, npt.NDArray[np.float32]]) -> tuple[float, float]:
    """L2 norm of the tensors, and of their difference from the model; tensor by tensor, to need no second copy."""
    length = distance = 0.0
    for name, old in model.items():
        value = as_float32(name, tensors[name])
        length = hypot(length, float(np.linalg.norm(value)))
        distance = hypot(distance, float(np.linalg.norm(value - old)))
    return length, distance
