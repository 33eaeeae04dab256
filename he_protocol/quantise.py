"""From floats to integers and back (section 3 of the design)."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from he_protocol.kernel import kernel
from he_protocol.problems import BAD_TENSORS, Refusal

BLOCK = 1 << 16

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def clip_factor(update: Floats, norm: float) -> float:
    """What the update must be multiplied by (see `shrink`) to have an L2 norm of at most `norm`; at most 1.

    Computed in float64, a block at a time. The factor is made smaller by 2^-23, so that rounding the
    product to float32 cannot carry it over `norm`. Raises `bad-tensors` for a value that is not finite.
    """
    squares = 0.0
    for at in range(0, update.size, BLOCK):
        block = update[at : at + BLOCK].astype(np.float64)
        squares += float(block @ block)
    length = sqrt(squares) if np.isfinite(squares) else squares
    if not np.isfinite(length):
        raise Refusal(BAD_TENSORS, "the update has a value that is not finite")
    return 1.0 if length <= norm else norm / length * (1 - 2.0**-23)


def shrink(update: Floats, factor: float) -> Floats:
    """The update times a factor, rounded once to float32."""
    return update if factor == 1.0 else (update.astype(np.float64) * factor).astype(np.float32)


def quantise(update: Floats, scale: float, value_range: float, words: npt.NDArray[np.uint64]) -> Integers:
    """Clip each coordinate to ±`value_range`, multiply by `scale`, round stochastically.

    `words` are uniform 64-bit words from a CSPRNG, one for each coordinate; their top 53 bits decide.
    """
    if not np.isfinite(update).all():
        raise Refusal(BAD_TENSORS, "the update has a value that is not finite")
    out = np.empty(update.shape, dtype=np.int64)
    _quantise(np.ascontiguousarray(update, dtype=np.float32), scale, value_range, words, out)
    return out


def dequantise(total: Integers, scale: float) -> npt.NDArray[np.float64]:
    """The real sum behind an opened integer sum."""
    return total / scale


@kernel
def _quantise(update: Floats, scale: float, value_range: float, words: npt.NDArray[np.uint64], out: Integers) -> None:
    unit = 1.0 / 9007199254740992.0  # 2^-53
    for i in range(update.size):
        value = min(max(float(update[i]), -value_range), value_range) * scale
        below = np.floor(value)
        draw = np.float64(words[i] >> np.uint64(11)) * unit
        out[i] = np.int64(below) + (1 if draw < value - below else 0)
