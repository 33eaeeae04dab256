"""A shared rotation that spreads an update's norm evenly over its coordinates (section 3 of the design; ADR 34).

After it no coordinate is much larger than clip_norm / sqrt(d), so that a small value range cuts nothing, and few bits
hold the sum. It is orthonormal and linear: norms, and so sensitivity, stay, and the opened mean is rotated back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.keystream import KEY_BYTES, expand_words
from he_protocol.privacy.quantise import Floats

LARGEST_BLOCK = 1024
PASSES = 2
"""The second spreads what the first has gathered in one column."""
SLIGHTLY_LESS = 1 - 2.0**-18
"""What a rotated update is multiplied by: rounding to float32 in each of at most 40 additions, of relative size 2^-24,
carries it over no norm."""
_DOMAIN = b"hushsum/rotation/v1"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rotation:
    """Random signs, then Walsh-Hadamard transforms of blocks of `block` coordinates, twice.

    The first time a block is a column of the vector, read as rows; the second time it is contiguous. What a whole
    number of blocks leaves over is turned together with the coordinates before it. Nothing is padded.
    """

    length: int
    epoch_id: bytes

    @property
    def block(self) -> int:
        """The largest power of 4 that fits: its root, which normalises a transform, is a power of 2."""
        size = 1
        while 4 * size <= min(self.length, LARGEST_BLOCK):
            size *= 4
        return size

    def forward(self, values: Floats) -> Floats:
        """The rotated vector, float32, times `SLIGHTLY_LESS`; the argument stays as it is."""
        turned = values * np.float32(SLIGHTLY_LESS)
        for number in range(PASSES):
            _sign(turned, self._signs(number))
            self._turn(turned, number)
        return turned

    def inverse(self, values: Doubles) -> Doubles:
        """What `forward` came from, but for its factor; float64."""
        turned = values.copy()
        for number in reversed(range(PASSES)):
            self._turn(turned, number, back=True)
            _sign(turned, self._signs(number))
        return turned

    def _turn(self, values: npt.NDArray[np.floating], number: int, *, back: bool = False) -> None:
        """One pass, in place. A transform is its own inverse, so that the way back is the other order."""
        block = self.block
        whole = self.length // block * block
        stretches = [(values[:whole], 1 if number else whole // block)]
        if whole < self.length:
            stretches.append((values[self.length - block :], 1))
        for stretch, columns in reversed(stretches) if back else stretches:
            _hadamard(stretch, block, columns)

    def _signs(self, number: int) -> npt.NDArray[np.uint64]:
        """A bit for each coordinate, known to everybody who knows the task."""
        key = hashlib.sha256(_DOMAIN + bytes([number]) + self.epoch_id).digest()[:KEY_BYTES]
        return expand_words(key, -(-self.length // 64))


@kernel
def _sign(values: npt.NDArray[np.floating], words: npt.NDArray[np.uint64]) -> None:
    one = values.dtype.type(1.0)
    for at in range(0, values.size, 64):
        word, some = words[at >> 6], values[at : at + 64]
        for i in range(some.size):
            some[i] *= one - values.dtype.type(2 * ((word >> np.uint64(i)) & np.uint64(1)))


@kernel
def _hadamard(values: npt.NDArray[np.floating], rows: int, columns: int) -> None:
    """The orthonormal Walsh-Hadamard transform of every column of (rows, columns) blocks, in place; `rows` is a power
    of 4."""
    half = values.dtype.type(0.5)
    for first in range(0, values.size, rows * columns):
        _hadamard_of_one(values[first : first + rows * columns], rows, columns, half)


@kernel
def _hadamard_of_one(values: npt.NDArray[np.floating], rows: int, columns: int, half: np.floating) -> None:
    height = rows // 4
    while height >= 1:
        size = height * columns
        for start in range(0, rows * columns, 4 * size):
            a = values[start : start + size]
            b = values[start + size : start + 2 * size]
            c = values[start + 2 * size : start + 3 * size]
            d = values[start + 3 * size : start + 4 * size]
            for i in range(size):
                sum_ac, less_ac = a[i] + c[i], a[i] - c[i]
                sum_bd, less_bd = b[i] + d[i], b[i] - d[i]
                a[i] = half * (sum_ac + sum_bd)
                b[i] = half * (sum_ac - sum_bd)
                c[i] = half * (less_ac + less_bd)
                d[i] = half * (less_ac - less_bd)
        height //= 4
