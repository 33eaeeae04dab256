"""Named tensors from safetensors files of another party."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType


def read_tensors(path: Path, problem: ProblemType, detail: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file, mapped and copied one by one. Raises `problem` for what is no such file."""
    try:
        return dict(load_file(path))
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:  # a type or a shape that numpy does not have
        raise ProblemError(problem, f"{detail}: {error}") from None
