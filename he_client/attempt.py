"""A user's training function, run so that what it sends does not depend on whether it fails.

A model of the server's choice can make training fail on exactly those clients whose data have some property. Silence
carries no noise: under a DP plan it would tell what no epsilon counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from he_client.tensors import Tensors
from he_protocol.task import Task

log = logging.getLogger("he-client")

Update = Tensors | tuple[Tensors, float]
Train = Callable[[dict[str, npt.NDArray[np.float32]]], Update]
"""From the model's tensors to the update, or to a pair of it and the number of examples."""


def attempt(
    task: Task, train: Train, model: Mapping[str, npt.NDArray[np.float32]], *, raise_errors: bool = False
) -> tuple[Tensors, float | None]:
    """What the function makes of the model: an update, and a number of examples or None.

    Under a DP plan an exception, or nothing for an update, becomes a zero update, which is said in the local log only.
    Without DP, or with `raise_errors`, it is raised. Tensors of other names or shapes are for `flatten` to refuse:
    they do not depend on data.
    """
    try:
        result: Any = train(dict(model))
    except (Exception, SystemExit):
        if raise_errors or not task.config.privacy.noisy:
            raise
        log.exception("training failed: a zero update takes its place")
        result = None
    update, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if task.config.privacy.noisy and not raise_errors and not (isinstance(update, Mapping) and update):
        log.warning("training gave no update: a zero update takes its place")
        return {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in task.config.model.tensors}, None
    return update, examples
