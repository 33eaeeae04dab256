"""What an update may be made of: arrays of any library come out as float32, and what cannot be meant is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from he_client.arrays import as_float32
from he_client.tensors import flatten, unflatten
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS
from he_protocol.task import Task
from he_testing.problems import expect_problem
from tests.support.parties import World

VALUES = [[1.5, -2.0, 0.25], [3.0, 0.0, -0.5]]
"""Exact in every float of 8 bits or more."""


@pytest.fixture(scope="module")
def task() -> Task:
    return World(tensors=(TensorSpec("w", (2, 3)), TensorSpec("gain", ()))).task


def numpy(kind: str) -> Callable[[], Any]:
    return lambda: np.array(VALUES, dtype=kind)


def pytorch(kind: torch.dtype) -> Callable[[], Any]:
    return lambda: torch.tensor(VALUES).to(kind)


class Exchanged:
    """Of a library that knows DLPack only."""

    def __init__(self) -> None:
        self._values = np.array(VALUES, dtype=np.float32)

    def __dlpack__(self, **how: Any) -> Any:
        return self._values.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


class OnDevice:
    """As CuPy: refuses to be copied by the way."""

    __cuda_array_interface__: dict[str, Any] = {}

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def get(self) -> npt.NDArray[np.float32]:
        return np.array(VALUES, dtype=np.float32)


class Jax:
    """As a JAX array: only says that it can be an array."""

    shape = (2, 3)
    dtype = np.dtype(np.float32)

    def __array__(self, *_: object, **__: object) -> npt.NDArray[np.float32]:
        return np.array(VALUES, dtype=np.float32)


READ: dict[str, Callable[[], Any]] = {
    "float16": numpy("f2"),
    "float64": numpy("f8"),
    "long double": numpy("g"),
    "another byte order": numpy(">f4"),
    "every second": lambda: np.repeat(np.array(VALUES), 2, axis=1)[:, ::2],
    "transposed": lambda: np.asfortranarray(VALUES),
    "read only": lambda: np.broadcast_to(np.array(VALUES), (2, 3)),
    "lists": lambda: VALUES,
    "torch": pytorch(torch.float32),
    "torch float64": pytorch(torch.float64),
    "torch float16": pytorch(torch.float16),
    "torch bfloat16": pytorch(torch.bfloat16),
    "torch float8": pytorch(torch.float8_e4m3fn),
    "torch float8 e5m2": pytorch(torch.float8_e5m2),
    "parameter": lambda: torch.nn.Parameter(torch.tensor(VALUES)),
    "with a gradient": lambda: torch.tensor(VALUES, requires_grad=True) * 1,
    "not contiguous": lambda: torch.tensor(VALUES).t().contiguous().t(),
    "sparse": lambda: torch.tensor(VALUES).to_sparse(),
    "a negative view": lambda: torch.complex(torch.zeros(2, 3), -torch.tensor(VALUES)).conj().imag,
    "dlpack": Exchanged,
    "on a device": OnDevice,
    "jax": Jax,
}


@pytest.mark.parametrize("kind", READ)
def test_arrays_of_any_library_are_read(kind: str, task: Task) -> None:
    flat = flatten(task, {"w": READ[kind](), "gain": np.float64(7.0)})
    assert flat.dtype == np.float32
    assert flat.tolist() == [1.5, -2.0, 0.25, 3.0, 0.0, -0.5, 7.0]


def test_small_floats_of_jax_are_read() -> None:
    """numpy takes them for raw bytes, where their library is there."""
    kinds = pytest.importorskip("ml_dtypes")
    for kind in (kinds.bfloat16, kinds.float8_e4m3fn, kinds.float8_e5m2):
        assert as_float32("w", np.array(VALUES, dtype=kind)).tolist() == VALUES
    with expect_problem(BAD_TENSORS, "int4"):
        as_float32("w", np.array([1, 2], dtype=kinds.int4))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "int32": (numpy("i4"), "got int32"),
    "int64": (numpy("i8"), "got int64"),
    "uint8": (lambda: np.ones((2, 3), np.uint8), "got uint8"),
    "bool": (numpy("?"), "got bool"),
    "complex": (numpy("c8"), "got complex64"),
    "object": (numpy("O"), "got object"),
    "text": (numpy("U"), "got <U"),
    "bytes": (numpy("S"), "got |S"),
    "dates": (lambda: np.zeros((2, 3), "M8[s]"), "got datetime64[s]"),
    "records": (lambda: np.zeros((2, 3), "f4,f4"), "got [("),
    "raw bytes": (lambda: np.zeros((2, 3), "V4"), "got |V4"),
    "whole numbers in lists": (lambda: [[1, 2, 3], [4, 5, 6]], "got int64"),
    "masked": (lambda: np.ma.masked_invalid(VALUES), "got a masked array"),
    "masked without a mask": (lambda: np.ma.array(VALUES), "got a masked array"),
    "masked in a list": (lambda: [np.ma.array(row) for row in VALUES], "got a masked array"),
    "torch int": (pytorch(torch.int64), "got int64"),
    "torch bool": (pytorch(torch.bool), "got bool"),
    "torch complex": (pytorch(torch.complex64), "got complex64"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.tensor(VALUES), 0.1, 0, torch.qint8), "cannot be read"),
    "without values": (lambda: torch.empty(2, 3, device="meta"), "cannot be read"),
    "none": (lambda: None, "NoneType is no array of numbers"),
    "a dict": (lambda: {"values": VALUES}, "dict is no array of numbers"),
    "ragged": (lambda: [[1.0], [1.0, 2.0]], "cannot be read"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(kind: str, task: Task) -> None:
    make, why = REFUSED[kind]
    with pytest.raises(ProblemError) as refused:
        flatten(task, {"w": make(), "gain": 1.0})
    assert refused.value.problem == BAD_TENSORS
    assert "tensor 'w'" in str(refused.value)
    assert why in str(refused.value)


def test_a_list_is_in_the_models_order(task: Task) -> None:
    assert flatten(task, [torch.tensor(VALUES), 7.0]).tolist() == flatten(task, {"gain": 7.0, "w": VALUES}).tolist()
    with expect_problem(BAD_TENSORS, "expected 2, got 1"):
        flatten(task, [np.array(VALUES)])


@pytest.mark.parametrize("update", [np.zeros(7, np.float32), torch.zeros(7), None, 3.0, "w", {"w", "gain"}])
def test_what_has_neither_names_nor_an_order_is_refused(task: Task, update: Any) -> None:
    with expect_problem(BAD_TENSORS, "an update is a dict of arrays"):
        flatten(task, update)


def test_names_and_shapes_that_differ_are_named(task: Task) -> None:
    whole = {"w": np.zeros((2, 3), np.float32), "gain": np.float32(1)}
    with expect_problem(BAD_TENSORS, "these differ: gain "):
        flatten(task, {"w": whole["w"]})
    with expect_problem(BAD_TENSORS, "these differ: bn.num_batches_tracked "):
        flatten(task, whole | {"bn.num_batches_tracked": np.array(3)})
    with expect_problem(BAD_TENSORS, "'gain': (1,)"):
        flatten(task, whole | {"gain": np.zeros(1, np.float32)})
    with expect_problem(BAD_TENSORS, "these differ: 1, b'w', gain, w "):
        flatten(task, {1: whole["w"], b"w": whole["gain"]})  # type: ignore[dict-item]
    with expect_problem(BAD_TENSORS, "w0, w1, w10, w11, w12, w13 and 54 more"):
        flatten(task, {f"w{number}": whole["w"] for number in range(60)})


def test_a_scalar_comes_back_as_one(task: Task) -> None:
    back = unflatten(task, flatten(task, {"w": VALUES, "gain": np.array(7.0)}))
    assert (back["gain"].shape, back["gain"].item(), back["w"].tolist()) == ((), 7.0, VALUES)
