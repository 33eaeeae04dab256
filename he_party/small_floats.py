"""Floats of 16 and 8 bits that numpy has no types for, as files of models have them."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def _bfloat16(raw: bytes) -> Floats:
    """The upper half of a float32."""
    return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def _float8_e5m2(raw: bytes) -> Floats:
    """The upper half of a float16."""
    return (np.frombuffer(raw, dtype=np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def _float8_e4m3(raw: bytes) -> Floats:
    return _E4M3[np.frombuffer(raw, dtype=np.uint8)]


def _e4m3(bits: int) -> float:
    """One value: no infinity, and one NaN of each sign (Micikevicius et al. 2022, FP8 Formats for Deep Learning)."""
    exponent, mantissa = bits >> 3 & 15, bits & 7
    if bits & 127 == 127:
        return nan
    size = (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
    return -size if bits & 128 else size


_E4M3 = np.array([_e4m3(bits) for bits in range(256)], dtype=np.float32)

WIDENED: dict[str, Callable[[bytes], Floats]] = {
    "BF16": _bfloat16,
    "F8_E4M3": _float8_e4m3,
    "F8_E5M2": _float8_e5m2,
}
"""By safetensors' name of the type: little-endian bytes to float32, which holds every such value exactly."""
