"""Vectors of residues: how they are laid out, bit-packed, checked, and added modulo their primes.

A section that can be summed is an array of shape (polynomials, limbs, degree). Limb i is taken
modulo `moduli[i]`; every residue is packed into `bits` bits, little-endian, without padding. Rows
(one limb of one polynomial each) are whole 64-bit words because the degree is a multiple of 64, so
all kernels work row by row and never need a whole section in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel
from he_protocol.errors import ProblemError
from he_protocol.problems import RESIDUE_RANGE, WRONG_SIZE

U64Array: TypeAlias = npt.NDArray[np.uint64]
"""Words, moduli, constants: any 64-bit numbers."""
Residues: TypeAlias = U64Array

GROUP = 64
"""Residues that fill a whole number of 64-bit words, whatever their width."""


@dataclass(frozen=True)
class ResidueLayout:
    """Shape and packing of one vector of residues; `bits` is at most 62, the degree a multiple of 64."""

    polynomials: int
    moduli: tuple[int, ...]
    degree: int
    bits: int

    def __post_init__(self) -> None:
        if self.degree % GROUP or not 0 < self.bits <= 62 or max(self.moduli) > 1 << self.bits:
            raise ValueError("the degree must be a multiple of 64, and moduli must fit into `bits`, at most 62")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.polynomials, len(self.moduli), self.degree)

    @property
    def rows(self) -> int:
        return self.polynomials * len(self.moduli)

    @property
    def row_bytes(self) -> int:
        return self.degree * self.bits // 8

    @property
    def size(self) -> int:
        """Bytes of the whole packed vector."""
        return self.rows * self.row_bytes

    def zeros(self) -> Residues:
        return np.zeros(self.shape, dtype=np.uint64)


def pack(residues: Residues, layout: ResidueLayout) -> bytes:
    """Bit-pack an array of shape `layout.shape` (or some whole rows of it)."""
    flat = np.ascontiguousarray(residues, dtype=np.uint64).reshape(-1)
    out = np.empty(flat.size * layout.bits // 64, dtype="<u8")
    pack_into(out, flat, layout)
    return out.tobytes()


def pack_into(words: U64Array, residues: npt.NDArray[np.uint32] | Residues, layout: ResidueLayout) -> None:
    """Bit-pack whole rows, contiguous, into as many little-endian words as they fill; flat arrays both."""
    if words.size * 64 != residues.size * layout.bits or residues.size % layout.degree:
        raise ValueError("only whole rows are packed, into exactly the words that they fill")
    _kernels(layout.bits).pack(residues, words)


def unpack(packed: bytes | memoryview, layout: ResidueLayout) -> Residues:
    """Inverse of `pack` for whole polynomials; refuses a residue at or above its modulus."""
    rows, limbs = _whole_rows(packed, layout), len(layout.moduli)
    if rows % limbs:
        raise ProblemError(WRONG_SIZE, "packed bytes end inside a polynomial", expected=f"n * {limbs} rows", got=rows)
    out = np.zeros((rows, layout.degree), dtype=np.uint64)
    fold(out, packed, layout)
    return out.reshape(rows // limbs, limbs, layout.degree)


def fold(rows: Residues, packed: bytes | memoryview, layout: ResidueLayout, first_row: int = 0) -> None:
    """Add packed rows into `rows` (shape (k, degree)), each modulo the prime of its limb.

    `first_row` is the number of the first packed row within the vector: it picks the primes.
    Raises `residue-out-of-range` or `wrong-size`; on refusal `rows` is left unchanged.
    """
    count = _whole_rows(packed, layout)
    if rows.shape != (count, layout.degree):
        raise ProblemError(
            WRONG_SIZE, "accumulator and packed rows differ", expected=rows.shape, got=(count, layout.degree)
        )
    words, moduli = _words(packed, layout), row_moduli(layout, first_row, count)
    kernels, values = _kernels(layout.bits), np.empty(layout.degree, dtype=np.uint64)
    bad = kernels.fold(words, moduli, rows, values, count, False)
    if bad >= 0:
        refusal = _out_of_range(values, moduli[bad], first_row + bad)
        kernels.fold(words, moduli, rows, values, bad, True)
        raise refusal


def check(packed: bytes | memoryview, layout: ResidueLayout, first_row: int = 0) -> None:
    """Refuse packed rows with a residue at or above its modulus, as `fold` does, adding nothing."""
    count = _whole_rows(packed, layout)
    words, moduli = _words(packed, layout), row_moduli(layout, first_row, count)
    none, values = np.empty((0, layout.degree), dtype=np.uint64), np.empty(layout.degree, dtype=np.uint64)
    bad = _kernels(layout.bits).fold(words, moduli, none, values, count, False)
    if bad >= 0:
        raise _out_of_range(values, moduli[bad], first_row + bad)


def add(total: Residues, term: Residues, layout: ResidueLayout) -> None:
    """total += term, modulo each limb's prime; both of shape (polynomials, limbs, degree)."""
    moduli = row_moduli(layout, 0, layout.rows)
    _add(total.reshape(layout.rows, layout.degree), term.reshape(layout.rows, layout.degree), moduli)


def row_moduli(layout: ResidueLayout, first_row: int, count: int) -> U64Array:
    """The prime of each of `count` rows from `first_row` on, as uint64."""
    moduli = np.array(layout.moduli, dtype=np.uint64)
    return moduli[(first_row + np.arange(count)) % len(moduli)]


def _whole_rows(packed: bytes | memoryview, layout: ResidueLayout) -> int:
    rows, rest = divmod(len(packed), layout.row_bytes)
    if rest:
        raise ProblemError(
            WRONG_SIZE, "packed bytes end inside a row", expected=f"n * {layout.row_bytes}", got=len(packed)
        )
    return rows


def _words(packed: bytes | memoryview, layout: ResidueLayout) -> U64Array:
    words = np.frombuffer(packed, dtype="<u8").reshape(-1, layout.row_bytes // 8)
    return words if words.flags.aligned else words.copy()


def _out_of_range(values: Residues, modulus: np.uint64, row: int) -> ProblemError:
    column = int(np.argmax(values >= modulus))
    return ProblemError(
        RESIDUE_RANGE, f"residue {column} of row {row}", expected=f"below {modulus}", got=int(values[column])
    )


class _Kernels(NamedTuple):
    pack: Callable[[npt.NDArray[np.uint32] | Residues, U64Array], None]
    fold: Callable[[U64Array, U64Array, Residues, Residues, int, bool], int]


@lru_cache(maxsize=16)
def _kernels(bits: int) -> _Kernels:
    """Kernels for one width: as a constant it lets the compiler unroll every group into fixed shifts.

    They must not call one another: numba's cache on disk knows a kernel by what it closes over, and never
    finds again one that closes over another kernel.
    """
    mask = np.uint64((1 << bits) - 1)

    # Values are first joined to pieces of at most 62 bits: that is done for several pieces at once.
    joined = 1 << (62 // bits).bit_length() - 1
    width = joined * bits

    @kernel
    def pack(values: npt.NDArray[np.uint32] | Residues, words: U64Array) -> None:
        for group in range(values.size // 64):
            held, at = np.uint64(0), group * bits
            for k in range(64 // joined):
                piece = np.uint64(values[group * 64 + k * joined])
                for i in range(1, joined):
                    piece |= np.uint64(values[group * 64 + k * joined + i]) << np.uint64(i * bits)
                shift = (k * width) & 63
                held |= piece << np.uint64(shift)
                if shift + width >= 64:
                    words[at] = held
                    at += 1
                    held = piece >> np.uint64(64 - shift) if shift + width > 64 else np.uint64(0)

    @kernel
    def fold(words: U64Array, moduli: U64Array, rows: Residues, values: Residues, count: int, undo: bool) -> int:
        """Add (or, to undo, subtract) `count` rows; the number of the first bad row, where it stopped, or -1.

        With no accumulator (shape (0, degree)) rows are only checked. `values` is left with the last row read.
        """
        for row in range(count):
            modulus = moduli[row]
            for group in range(values.size // 64):
                for k in range(64):
                    at, shift = group * bits + ((k * bits) >> 6), (k * bits) & 63
                    value = words[row, at] >> np.uint64(shift)
                    if shift + bits > 64:
                        value |= words[row, at + 1] << np.uint64(64 - shift)
                    values[group * 64 + k] = value & mask
            bad = False
            for j in range(values.size):
                bad |= values[j] >= modulus
            if bad:
                return row
            if rows.shape[0] == 0:
                continue
            for j in range(values.size):
                total = rows[row, j] + (modulus - values[j] if undo else values[j])
                rows[row, j] = min(total, total - modulus)  # the difference wraps to a huge value below the modulus
        return -1

    return _Kernels(pack, fold)


@kernel
def _add(total: Residues, term: Residues, moduli: U64Array) -> None:
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            value = total[row, column] + term[row, column]
            total[row, column] = min(value, value - moduli[row])
