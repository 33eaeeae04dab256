"""Arrays of any library as numpy's, without importing the library: by what they can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_TENSORS


def as_float32(name: str, value: Any) -> Floats:
    """A tensor's values, of its own shape, as float32: of numpy, PyTorch, JAX, CuPy, DLPack, or numbers in lists.

    Raises `bad-tensors` for a type that no update has: integers, truth values, complex numbers, objects, text, masked
    arrays. That does not depend on data; whatever else is raised may: a device reports late what failed in training.
    """
    if _masked(value):
        raise ProblemError(
            BAD_TENSORS, f"tensor {name!r}: what stands under the mask?", expected="filled in", got="a masked array"
        )
    array = _numpy(value)
    if array.dtype == object and not hasattr(value, "dtype"):
        raise TypeError(f"{type(value).__name__} is no array of numbers")
    if not _floating(array.dtype):
        raise ProblemError(
            BAD_TENSORS,
            f"tensor {name!r}",
            expected="floating-point numbers; leave counters out of the task, convert what is meant to be averaged",
            got=array.dtype,
        )
    with np.errstate(all="ignore"):  # what does not fit into float32 becomes infinite, and is judged with the rest
        return array.astype(np.float32, copy=False)


def _numpy(value: Any) -> npt.NDArray[Any]:
    for step in ("detach", "cpu", "to_dense", "resolve_neg"):  # PyTorch: what keeps numpy from reading a tensor
        if callable(found := getattr(value, step, None)):
            value = found()
    if getattr(getattr(value, "dtype", None), "is_floating_point", False) is True:
        value = value.float()  # numpy has no bfloat16 or float8
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):  # CuPy copies only when it is told to
        value = value.get()
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def _floating(kind: np.dtype[Any]) -> bool:
    """Also JAX's small floats: to numpy these are raw bytes with a name."""
    return kind.kind == "f" or (kind.kind == "V" and kind.name.startswith(("bfloat", "float")))


def _masked(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_masked(one) for one in value)
    return isinstance(value, np.ma.MaskedArray)
