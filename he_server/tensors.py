"""Tensors as safetensors bytes, in the one form that this server stores: no metadata, so equal tensors
have equal bytes and one hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from he_protocol.problems import MALFORMED, Refusal
from he_protocol.quantise import Floats, Integers
from he_protocol.task import Task, TensorSpec
from he_server.blobs import Blobs
from he_server.names import model_blob
from he_server.optimiser import check_tensors

HEADER_ROOM = 1024 * 1024
"""Bytes that a model file may have on top of its values."""


def read_tensors(data: bytes, specs: Sequence[TensorSpec]) -> dict[str, Floats]:
    """The tensors of a model file. Raises `malformed` or `bad-tensors`."""
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise Refusal(MALFORMED, f"not a safetensors file: {error}") from None
    check_tensors(tensors, specs)
    return dict(tensors)


def keep_model(blobs: Blobs, task: Task, data: bytes) -> str:
    """Check a task's initial model and make it durable; the SHA-256 of its bytes as stored.

    Raises `malformed`, `bad-tensors` or `disk-full`.
    """
    model = write_tensors(read_tensors(data, task.config.tensors))
    sha256 = hashlib.sha256(model).hexdigest()
    blobs.put(model_blob(task.id, sha256), model)
    return sha256


def write_tensors(tensors: dict[str, Floats]) -> bytes:
    """Model tensors as safetensors bytes."""
    return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def write_sum(opened: Integers) -> bytes:
    """An opened sum: one int64 tensor named "sum"."""
    return bytes(save({"sum": np.ascontiguousarray(opened, dtype=np.int64)}))


def write_velocity(velocity: Floats) -> bytes:
    """The optimiser's state: one float32 tensor named "velocity"."""
    return bytes(save({"velocity": np.ascontiguousarray(velocity)}))


def read_velocity(data: bytes) -> Floats:
    """Inverse of `write_velocity`."""
    return np.asarray(load(data)["velocity"], dtype=np.float32)
