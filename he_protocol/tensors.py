"""Models as safetensors bytes, in the one form that is published: no metadata, so equal tensors have equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = {np.dtype("<f4"): "F32", np.dtype("<i8"): "I64"}
"""What safetensors calls them."""
_BLOCK = 1 << 16


def header(shapes: Mapping[str, tuple[int, ...]], kind: np.dtype[Any]) -> tuple[bytes, dict[str, int]]:
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
