"""Tensors as safetensors bytes, in the one form that this server stores: no metadata, so equal tensors
have equal bytes and one hash."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_TENSORS, DIGEST_MISMATCH, MALFORMED
from he_protocol.task import Task
from he_protocol.tensors import check_model, header
from he_server.blobs.keys import model_blob
from he_server.blobs.store import BlobStore, BlobWriter


def read_tensors(data: bytes, specs: Sequence[TensorSpec]) -> dict[str, Floats]:
    """The tensors of these names in a model file; what the authority has excluded may be there, too.

    Raises `malformed` or `bad-tensors`.
    """
    shapes = {spec.name: spec.shape for spec in specs}
    try:
        tensors = {name: value for name, value in load(data).items() if name in shapes}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ProblemError(MALFORMED, f"not a safetensors file: {error}") from None
    check_model(tensors, shapes)
    return tensors


def keep_model(blobs: BlobStore, task: Task, data: bytes) -> str:
    """Check a task's initial model and make it durable; the SHA-256 of its bytes as stored.

    Raises `malformed`, `bad-tensors`, `disk-full`, or `digest-mismatch` for another model than the authority signed.
    """
    model = write_tensors(read_tensors(data, task.config.model.tensors))
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 != (expected := task.config.model.initial_model.hex()):
        raise ProblemError(DIGEST_MISMATCH, "the initial model", expected=expected, got=sha256)
    blobs.put(model_blob(task.id, sha256), model)
    return sha256


def header_size(prefix: bytes, limit: int) -> int:
    """Bytes of the JSON header, from a safetensors file's first eight. Raises `malformed`."""
    size = int.from_bytes(prefix, "little")
    if size > limit:
        raise ProblemError(
            MALFORMED, "not a safetensors file: its header is too long", expected=f"at most {limit}", got=size
        )
    return size


def check_header(got: bytes, task: Task) -> None:
    """Raises `malformed` or `bad-tensors` unless a file begins as a model of this task does, as stored here."""
    wanted = model_file(task).header
    if got == wanted:
        return
    try:
        entries = msgspec.json.decode(got[8:], type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(MALFORMED, f"not a safetensors file: {error}") from None
    for name, entry in msgspec.json.decode(wanted[8:], type=dict[str, Any]).items():
        if entries.pop(name, None) != entry:
            raise ProblemError(
                BAD_TENSORS, f"tensor {name!r}", expected=entry, got=entries.get(name, "another, or none")
            )
    extra = next(iter(entries), "")
    detail = f"{extra!r} does not belong there" if extra else "the tensors are not sorted by their names"
    raise ProblemError(BAD_TENSORS, detail, expected="the task's tensors, sorted by their names, and no metadata")


def file_sha256(file: BinaryIO) -> str:
    """SHA-256 in hex of the bytes up to the end of a file. Blocks."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_finite(file: BinaryIO) -> None:
    """Raises `bad-tensors` when one of the float32 values up to the end of a file is not finite. Blocks."""
    while block := file.read(1 << 20):
        if not np.isfinite(np.frombuffer(block, dtype="<f4")).all():
            raise ProblemError(BAD_TENSORS, "a tensor has a value that is not finite")


def write_tensors(tensors: Mapping[str, Floats]) -> bytes:
    """Model tensors as safetensors bytes."""
    file = TensorFile({name: tensor.shape for name, tensor in tensors.items()}, np.float32)
    return file.header + b"".join(tensors[name].tobytes() for name in sorted(tensors))


class TensorFile:
    """A safetensors file of tensors of one type, read and written piece by piece.

    Elements are counted through the tensors in the order given; in the file they are as `header` has them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], kind: npt.DTypeLike) -> None:
        self._type = np.dtype(kind).newbyteorder("<")
        self.header, offsets = header(shapes, self._type)
        self.size = len(self.header) + sum(prod(shape) for shape in shapes.values()) * self._type.itemsize
        self._offsets = [len(self.header) + offsets[name] for name in shapes]
        self._starts = [0, *accumulate(prod(shape) for shape in shapes.values())]

    def check(self, blobs: BlobStore, name: str) -> None:
        """Raises FileNotFoundError, or `malformed` for a blob that is not such a file; its values are not looked at."""
        if blobs.size(name) != self.size or blobs.piece(name, 0, len(self.header)) != self.header:
            raise ProblemError(MALFORMED, f"the stored file {name} is damaged")

    def read(self, blobs: BlobStore, name: str, first: int, count: int) -> npt.NDArray[Any]:
        """A flat array of elements of a blob that passed `check`. Raises FileNotFoundError or `wrong-size`."""
        pieces = (blobs.piece(name, at, n * self._type.itemsize) for at, n in self._runs(first, count))
        return np.frombuffer(b"".join(pieces), dtype=self._type)

    def write(self, writer: BlobWriter, first: int, values: npt.NDArray[Any]) -> None:
        """Put a flat array of elements where they belong. Raises `disk-full`."""
        data = np.ascontiguousarray(values, dtype=self._type)
        done = 0
        for at, n in self._runs(first, data.size):
            writer.seek(at)
            writer.write(data[done : done + n].data)
            done += n

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Where these elements lie: offset and number of each run."""
        tensor, end = bisect_right(self._starts, first) - 1, first + count
        while first < end:
            stop = min(end, self._starts[tensor + 1])
            yield self._offsets[tensor] + (first - self._starts[tensor]) * self._type.itemsize, stop - first
            tensor, first = tensor + 1, stop


def model_file(task: Task) -> TensorFile:
    """A model: the task's tensors."""
    return TensorFile({spec.name: spec.shape for spec in task.config.model.tensors}, np.float32)


def optimiser_file(task: Task) -> TensorFile:
    """The optimiser's state: float32 tensors of the model's size."""
    return TensorFile(dict.fromkeys(task.config.aggregation.optimiser.state, (task.parameters,)), np.float32)


def sum_file(task: Task) -> TensorFile:
    """An opened sum: int64 tensors "sum" and, of shape (1,), "updates": how many are in it."""
    return TensorFile({"sum": (task.length,), "updates": (1,)}, np.int64)
