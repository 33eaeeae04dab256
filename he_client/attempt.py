"""A user's training function, run so that what it sends does not depend on whether it fails.

A model of the server's choice can make training fail on exactly those clients whose data have some property. Silence
carries no noise: under a DP plan it would tell what no epsilon counts.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from he_client.context import LocalResult, TrainingContext
from he_client.mix_up import warn_of_mix_up
from he_client.tensors import Tensors, by_name, flatten, unflatten

log = logging.getLogger("he-client")

Update: TypeAlias = Tensors | tuple[Tensors, float] | LocalResult
Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
Train = Callable[[Arrays], Update] | Callable[[Arrays, TrainingContext], Update]
"""From the model's tensors, and the context if it is asked for, to the update, a pair of it and the number of examples,
or a `LocalResult`.

A function gets the context if it has a second parameter without a default.
"""


def attempt(
    train: Train,
    context: TrainingContext,
    model: Mapping[str, npt.NDArray[np.float32]],
    *,
    raise_errors: bool = False,
) -> LocalResult:
    """What the function makes of the model: an update, never new weights.

    The function gets copies, so that it may change them. Under a DP plan an exception, or nothing for an update,
    becomes a zero update, which is said in the local log only. Without DP, or with `raise_errors`, it is raised.
    Tensors of other names, shapes or types are for `flatten` to refuse: they do not depend on data. Where new weights
    seem to have been returned as an update, or the other way round, the log says so.
    """
    task, total = context.task, context.plan.noisy and not raise_errors
    try:
        result = _result(_call(train, {name: value.copy() for name, value in model.items()}, context))
    except (Exception, SystemExit):
        if not total:
            raise
        log.exception("training failed: a zero update takes its place")
        result = LocalResult({})
    if isinstance(result.tensors, list | tuple) and result.tensors:
        result = replace(result, tensors=by_name(task, result.tensors))
    if total and not (isinstance(result.tensors, Mapping) and result.tensors):
        log.warning("training gave no update: a zero update takes its place")
        zeros = {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in task.config.model.tensors}
        return LocalResult(zeros, metrics=result.metrics)
    warn_of_mix_up(result, model)
    if not result.weights:
        return result
    with np.errstate(all="ignore"):  # the quantiser judges what is not finite
        update = flatten(task, result.tensors) - flatten(task, model)
    return replace(result, tensors=unflatten(task, update), weights=False)


def _call(train: Any, model: Arrays, context: TrainingContext) -> Any:
    return train(model, context) if _asks_for_the_context(train) else train(model)


def _asks_for_the_context(train: Any) -> bool:
    try:
        parameters = list(inspect.signature(train).parameters.values())
    except (TypeError, ValueError):  # of a function in C nobody knows
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([one for one in parameters if one.kind in positional and one.default is one.empty]) == 2


def _result(returned: Any) -> LocalResult:
    """Whatever was returned, in the one form."""
    if isinstance(returned, LocalResult):
        return replace(returned, metrics=_numbers(returned.metrics))
    tensors, examples = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    return LocalResult(tensors, examples)


def _numbers(metrics: Any) -> dict[str, float | tuple[float, ...]]:
    """The metrics that are numbers, or many: what is none is left out, since it is no reason to send nothing."""
    found: dict[str, float | tuple[float, ...]] = {}
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        try:
            found[str(name)] = tuple(float(one) for one in value) if np.ndim(value) == 1 else float(value)
        except Exception as error:
            log.warning("metric %r is not shown: %s: %s", name, type(error).__name__, error)
    return found
