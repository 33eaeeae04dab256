"""Named tensors from safetensors files of another party."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from he_party.small_floats import WIDENED
from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType


def read_tensors(path: Path, problem: ProblemType, detail: str, *, widen: bool = False) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file, mapped and copied one by one. Raises `problem` for what is no such file.

    Of the types that numpy does not have, bfloat16 and float8 become float32 with `widen`, and are refused without.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 it is no mapping
            return {
                name: _widened(path, name, kind) if widen and kind in WIDENED else _plain(file, name, kind)
                for name, kind in kinds.items()
            }
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ProblemError(problem, f"{detail}: {error}") from None


def _plain(file: Any, name: str, kind: str) -> npt.NDArray[Any]:
    try:
        tensor: npt.NDArray[Any] = file.get_tensor(name)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # what the library says of a type is not for users
        raise ValueError(f"tensor {name!r} of type {kind} cannot be read here; save it as float32") from error
    return tensor


def _widened(path: Path, name: str, kind: str) -> npt.NDArray[Any]:
    """A tensor's bytes, where the file's header, which has been checked by now, says that they are."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + size + start)
        return WIDENED[kind](file.read(stop - start)).reshape(entry["shape"])
