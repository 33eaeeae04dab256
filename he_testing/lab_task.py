"""The task of a lab: a plan that averages the updates of a model of any library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_client.arrays import as_float32
from he_client.importing import load_named
from he_client.lab import TASK
from he_party.tensors import read_tensors
from he_protocol.committee import Committee
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_PLAN, BAD_SETTINGS
from he_testing.plans import tables

Arrays = dict[str, npt.NDArray[np.float32]]
OPENINGS = 10_000
"""More than anybody tries out."""


def committee(holders: int) -> Committee:
    """Of so many holders the one that the most of them, less than a third if there are four, may be lost to.

    >>> str(committee(4)), str(committee(7)), str(committee(2))
    ('2/4/3', '3/7/5', '2/2/2')
    """
    colluders = max(1, (holders - 1) // 3)
    return Committee(holders, colluders + 1, (holders + colluders) // 2 + 1)


def plan(
    clients: int, holders: int, *, value_range: float, weight_cap: float | None, collect_seconds: int
) -> dict[str, Any]:
    """Rounds of all clients: the model plus the mean of their updates, weighted by examples where there is a cap."""
    numbers = committee(holders)
    weighting = {} if weight_cap is None else {"weighting": "examples", "weight_cap": weight_cap}
    return tables(
        {
            "name": TASK,
            "epoch": 1,
            "scheme": "kahe",
            "profile": "kahe-30",  # the finest: a lab's model is small, and its numbers are looked at
            "privacy": {"unit": "none"},
            "min_clients": clients,
            "max_clients": clients,
            "collect_seconds": collect_seconds,
            "opening_seconds": 60,
            "staleness": 2,
            "max_openings": OPENINGS,
            "value_range": value_range,
            "threshold": numbers.threshold,
            "agreement": numbers.agreement,
            **weighting,
        }
    )


def initial_model(name: str) -> Arrays:
    """The arrays of a safetensors file, or of what FILE.py:NAME or MODULE:NAME stands for.

    Raises `bad-settings`, or `bad-tensors` for arrays that no update has.
    """
    if ":" not in name:
        tensors = read_tensors(Path(name), BAD_SETTINGS, f"cannot read the model {name}", widen=True)
        return {tensor: as_float32(tensor, value) for tensor, value in tensors.items()}
    try:
        return arrays_of(load_named(name))
    except ProblemError:
        raise
    except (Exception, SystemExit) as error:  # of the user's function, or of what it returns
        raise ProblemError(BAD_SETTINGS, f"--model {name}: {type(error).__name__}: {error}") from None


def arrays_of(found: Any) -> Arrays:
    """The arrays of a torch module, a dict or list of arrays, or a function that returns one. Raises `bad-plan`."""
    if isinstance(found, type) or (callable(found) and not hasattr(found, "named_parameters")):
        found = found()
    if hasattr(found, "named_parameters"):
        from he_client.training import arrays

        found = arrays(found)
    elif isinstance(found, list | tuple):
        found = {f"array-{number}": value for number, value in enumerate(found)}
    if not isinstance(found, Mapping) or not found:
        raise ProblemError(
            BAD_PLAN,
            "--model",
            expected="a torch module that trains something, a dict or list of arrays, or a function that returns one",
            got=type(found).__name__,
        )
    return {str(tensor): np.ascontiguousarray(as_float32(str(tensor), value)) for tensor, value in found.items()}
