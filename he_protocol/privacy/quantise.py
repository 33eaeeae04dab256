"""From floats to integers and back (section 3 of the design)."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

COLUMNS = 1024


def l2_norm(update: Floats) -> float:
    """The update's L2 norm, in float64; not finite exactly where a value of it is not (squares cannot overflow)."""
    return sqrt(_squares(np.ascontiguousarray(update, dtype=np.float32)))


def clip_factor(length: float, norm: float) -> float:
    """What an update of L2 norm `length` must be multiplied by (see `shrink`) to have at most `norm`; at most 1.

    The factor is made smaller by 2^-23, so that rounding the product to float32 cannot carry it over `norm`.
    """
    return 1.0 if length <= norm else norm / length * (1 - 2.0**-23)


def shrink(update: Floats, factor: float) -> Floats:
    """The update times a factor, rounded once to float32; zeros for a factor of 0, whatever the update is.

    As much work for every factor: how long it takes does not tell what was clipped.
    """
    usable = np.where(factor > 0, update, np.float32(0))
    return (usable.astype(np.float64) * factor).astype(np.float32)


def saturated(update: Floats, factor: float, value_range: float) -> int:
    """How many coordinates of `shrink(update, factor)` lie beyond ±`value_range`, rounded to float32 as they are."""
    with np.errstate(over="ignore"):
        limit = np.float32(value_range)
    return _saturated(np.ascontiguousarray(update, dtype=np.float32), factor, limit)


def quantise(update: Floats, scale: float, value_range: float, words: npt.NDArray[np.uint32]) -> Integers:
    """Clip each (finite) coordinate to ±`value_range`, multiply by `scale`, round stochastically.

    `words` are uniform 32-bit words from a CSPRNG, one for each coordinate: the expected result is off by
    less than 2^-32.
    """
    out = np.empty(update.shape, dtype=np.int64)
    _quantise(np.ascontiguousarray(update, dtype=np.float32), scale, value_range, words, out)
    return out


def dequantise(total: Integers, scale: float) -> npt.NDArray[np.float64]:
    """The real sum behind an opened integer sum."""
    return total / scale


@kernel
def _squares(update: Floats) -> float:
    """The sum of squares: `COLUMNS` sums side by side, which the compiler makes several at a time, and then theirs."""
    sums = np.zeros(COLUMNS)
    for start in range(0, update.size, COLUMNS):
        row = update[start : start + COLUMNS]
        for i in range(row.size):
            value = np.float64(row[i])
            sums[i] += value * value
    total = 0.0
    for i in range(COLUMNS):
        total += sums[i]
    return total


@kernel
def _saturated(update: Floats, factor: float, limit: np.float32) -> int:
    count = 0
    for i in range(update.size):
        if abs(np.float32(np.float64(update[i]) * factor)) > limit:
            count += 1
    return count


@kernel
def _quantise(update: Floats, scale: float, value_range: float, words: npt.NDArray[np.uint32], out: Integers) -> None:
    unit = 1.0 / 4294967296.0  # 2^-32
    for i in range(update.size):
        value = min(max(float(update[i]), -value_range), value_range) * scale
        below = np.floor(value)
        draw = np.float64(words[i]) * unit
        out[i] = np.int64(below) + (1 if draw < value - below else 0)
