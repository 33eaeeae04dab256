"""Models as safetensors bytes, in the one form that is published: no metadata, so equal tensors have equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS

Shapes = Mapping[str, tuple[int, ...]]

MODEL_HEADER_BYTES = 1024 * 1024
"""Bytes that a model file, or an opened sum, may have on top of its values."""
NAMED = 8
"""The most tensors that a refusal names."""
TYPES = {np.dtype("<f4"): "F32", np.dtype("<i8"): "I64"}
"""What safetensors calls them."""
_BLOCK = 1 << 16


def header(shapes: Shapes, kind: np.dtype[Any]) -> tuple[bytes, dict[str, int]]:
    """What stands before the values, and where in them each tensor begins.

    8 bytes of length, a header in JSON padded to 8 bytes; tensors are sorted by their names, as the safetensors library
    does it.
    """
    entries, offsets, end = {}, {}, 0
    for name in sorted(shapes):
        offsets[name], end = end, end + prod(shapes[name]) * kind.itemsize
        entries[name] = {"dtype": TYPES[kind], "shape": shapes[name], "data_offsets": (offsets[name], end)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def model_digest(tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """`ModelSpec.initial_model`: SHA-256 of these tensors as servers publish them. Needs no second copy of them."""
    start, offsets = header({name: value.shape for name, value in tensors.items()}, np.dtype("<f4"))
    digest = hashlib.sha256(start)
    for name in offsets:
        for block in _blocks(tensors[name]):
            digest.update(block)
    return digest.digest()


def _blocks(values: npt.NDArray[np.float32]) -> Iterator[bytes]:
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for block in np.nditer(values, flags=flags, order="C", buffersize=_BLOCK):  # type: ignore[call-overload]
        yield block.astype("<f4").tobytes()


def check_shapes(got: Shapes, expected: Shapes) -> None:
    """Refuse tensors of other names or shapes than a task's. Raises `bad-tensors`, which names the first few."""
    names = expected.keys() | got.keys()
    differing = sorted((name for name in names if expected.get(name) != got.get(name)), key=str)
    if differing:
        shown = differing[:NAMED]
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise ProblemError(
            BAD_TENSORS,
            f"these differ: {', '.join(map(str, shown))}{more}",
            expected={name: expected.get(name, "none of this name") for name in shown},
            got={name: got.get(name, "none") for name in shown},
        )


def check_model(tensors: Mapping[str, npt.NDArray[Any]], expected: Shapes) -> None:
    """Refuse what is no model of these shapes: every party's check of what may be published, also before it is signed.

    Values are float32 and finite. Raises `bad-tensors`.
    """
    check_shapes({name: value.shape for name, value in tensors.items()}, expected)
    check_float32(tensors)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ProblemError(BAD_TENSORS, f"tensor {name!r} has a value that is not finite")


def check_float32(tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raises `bad-tensors` for tensors of other types, which names the first few."""
    others = {name: str(value.dtype) for name, value in tensors.items() if value.dtype != np.float32}
    if others:
        shown = sorted(others)[:NAMED]
        raise ProblemError(
            BAD_TENSORS, f"tensors {', '.join(map(repr, shown))}", expected="float32", got=[others[n] for n in shown]
        )
