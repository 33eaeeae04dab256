"""A user's training function, run so that what it sends does not depend on whether it fails.

A model of the server's choice can make training fail on exactly those clients whose data have some property. Silence
carries no noise: under a DP plan it would tell what no epsilon counts.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from he_client.tensors import Tensors, by_name
from he_protocol.task import Task

log = logging.getLogger("he-client")

Update: TypeAlias = Tensors | tuple[Tensors, float]
Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
Train = Callable[[Arrays], Update] | Callable[[Arrays, Task], Update]
"""From the model's tensors, and the task if it is asked for, to the update or a pair of it and the number of examples.

A function gets the task (with the plan: clip_norm, sampling_rate) if it has a second parameter without a default.
"""


def attempt(
    task: Task, train: Train, model: Mapping[str, npt.NDArray[np.float32]], *, raise_errors: bool = False
) -> tuple[Tensors, float | None]:
    """What the function makes of the model: an update, and a number of examples or None.

    Under a DP plan an exception, or nothing for an update, becomes a zero update, which is said in the local log only.
    Without DP, or with `raise_errors`, it is raised. Tensors of other names, shapes or types are for `flatten` to
    refuse: they do not depend on data.
    """
    try:
        result: Any = _call(train, task, dict(model))
    except (Exception, SystemExit):
        if raise_errors or not task.config.privacy.noisy:
            raise
        log.exception("training failed: a zero update takes its place")
        result = None
    update, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if isinstance(update, list) and update:
        update = by_name(task, update)
    if task.config.privacy.noisy and not raise_errors and not (isinstance(update, Mapping) and update):
        log.warning("training gave no update: a zero update takes its place")
        return {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in task.config.model.tensors}, None
    return update, examples


def _call(train: Any, task: Task, model: Arrays) -> Any:
    return train(model, task) if _asks_for_the_task(train) else train(model)


def _asks_for_the_task(train: Any) -> bool:
    try:
        parameters = list(inspect.signature(train).parameters.values())
    except (TypeError, ValueError):  # of a function in C nobody knows
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([one for one in parameters if one.kind in positional and one.default is one.empty]) == 2
