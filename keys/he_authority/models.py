"""Initial models, as the authority checks them before it signs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS
from he_protocol.tensors import NAMED, check_float32

Tensors = Mapping[str, npt.NDArray[Any]]


def trained(tensors: Tensors, exclude: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a task: those whose names match none of the patterns (as a shell's: `*.running_*`).

    The others stay on the devices, as each has them. Raises `bad-tensors` for a pattern that matches nothing, and for
    tensors that cannot be averaged.
    """
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise ProblemError(
                BAD_TENSORS, f"no tensor is called {pattern!r}", expected="a name, or a pattern of names, of the model"
            )
    left = {name: value for name, value in tensors.items() if not any(fnmatchcase(name, one) for one in exclude)}
    if counters := [name for name, value in left.items() if not np.issubdtype(value.dtype, np.inexact)]:
        shown = ", ".join(f"{name} ({left[name].dtype})" for name in counters[:NAMED])
        raise ProblemError(
            BAD_TENSORS,
            f"what counts cannot be averaged; --exclude NAME leaves a tensor to the devices, such as"
            f" --exclude '*{counters[0].rpartition('.')[2]}'",
            expected="float32",
            got=shown,
        )
    check_float32(left)
    return left
