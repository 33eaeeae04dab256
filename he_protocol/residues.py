"""Vectors of residues: how they are laid out, bit-packed, checked, and added modulo their primes.

A body part that can be summed is an array of shape (polynomials, limbs, degree). Limb i is taken
modulo `moduli[i]`; every residue is packed into `bits` bits, little-endian, without padding. One
row (one limb of one polynomial) is a whole number of bytes because the degree is a multiple of 8,
so all kernels work row by row and never need a whole part in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_protocol.kernel import kernel
from he_protocol.problems import RESIDUE_RANGE, WRONG_SIZE, Refusal

Residues = npt.NDArray[np.uint64]
Packed = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ResidueLayout:
    """Shape and packing of one vector of residues; `bits` is at most 56."""

    polynomials: int
    moduli: tuple[int, ...]
    degree: int
    bits: int

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
    """Bit-pack an array of shape `layout.shape` (or some whole polynomials of it)."""
    flat = np.ascontiguousarray(residues).reshape(-1)
    out = np.empty(flat.size * layout.bits // 8, dtype=np.uint8)
    _pack(flat, np.uint64(layout.bits), out)
    return out.tobytes()


def unpack(packed: bytes | memoryview, layout: ResidueLayout) -> Residues:
    """Inverse of `pack` for whole rows; refuses a residue at or above its modulus."""
    out = np.zeros((_whole_rows(packed, layout), layout.degree), dtype=np.uint64)
    fold(out, packed, layout)
    return out.reshape(-1, len(layout.moduli), layout.degree) if len(out) % len(layout.moduli) == 0 else out


def fold(rows: Residues, packed: bytes | memoryview, layout: ResidueLayout, first_row: int = 0) -> None:
    """Add packed rows into `rows` (shape (k, degree)), each modulo the prime of its limb.

    `first_row` is the number of the first packed row within the vector: it picks the primes.
    Raises `residue-out-of-range` or `wrong-size`; on refusal `rows` is left unchanged.
    """
    count = _whole_rows(packed, layout)
    if rows.shape != (count, layout.degree):
        raise Refusal(WRONG_SIZE, "accumulator and packed rows differ", expected=rows.shape, got=(count, layout.degree))
    data = np.frombuffer(packed, dtype=np.uint8).reshape(count, layout.row_bytes)
    moduli = row_moduli(layout, first_row, count)
    bad = _first_bad(data, np.uint64(layout.bits), moduli, layout.degree)
    if bad >= 0:
        row, column = divmod(int(bad), layout.degree)
        raise Refusal(
            RESIDUE_RANGE,
            f"residue {column} of row {first_row + row}",
            expected=f"below {moduli[row]}",
            got="at or above it",
        )
    _fold(data, np.uint64(layout.bits), moduli, rows)


def check(packed: bytes | memoryview, layout: ResidueLayout, first_row: int = 0) -> None:
    """Refuse packed rows with a residue at or above its modulus, as `fold` does, adding nothing."""
    fold(np.zeros((_whole_rows(packed, layout), layout.degree), dtype=np.uint64), packed, layout, first_row)


def add(total: Residues, term: Residues, layout: ResidueLayout) -> None:
    """total += term, modulo each limb's prime; both of shape (polynomials, limbs, degree)."""
    moduli = row_moduli(layout, 0, layout.rows)
    _add(total.reshape(layout.rows, layout.degree), term.reshape(layout.rows, layout.degree), moduli)


def row_moduli(layout: ResidueLayout, first_row: int, count: int) -> Residues:
    """The prime of each of `count` rows from `first_row` on, as uint64."""
    moduli = np.array(layout.moduli, dtype=np.uint64)
    return moduli[(first_row + np.arange(count)) % len(moduli)]


def _whole_rows(packed: bytes | memoryview, layout: ResidueLayout) -> int:
    rows, rest = divmod(len(packed), layout.row_bytes)
    if rest:
        raise Refusal(WRONG_SIZE, "packed bytes end inside a row", expected=f"n * {layout.row_bytes}", got=len(packed))
    return rows


@kernel
def _pack(values: Residues, bits: np.uint64, out: Packed) -> None:
    held = np.uint64(0)
    fill = np.uint64(0)
    eight, low = np.uint64(8), np.uint64(255)
    at = 0
    for value in values:
        held |= value << fill
        fill += bits
        while fill >= eight:
            out[at] = held & low
            at += 1
            held >>= eight
            fill -= eight


@kernel
def _first_bad(data: Packed, bits: np.uint64, moduli: Residues, degree: int) -> int:
    """Index (row * degree + column) of the first residue at or above its modulus, or -1."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    eight = np.uint64(8)
    for row in range(data.shape[0]):
        held = np.uint64(0)
        fill = np.uint64(0)
        at = 0
        for column in range(degree):
            while fill < bits:
                held |= np.uint64(data[row, at]) << fill
                at += 1
                fill += eight
            if held & mask >= moduli[row]:
                return row * degree + column
            held >>= bits
            fill -= bits
    return -1


@kernel
def _fold(data: Packed, bits: np.uint64, moduli: Residues, out: Residues) -> None:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    eight = np.uint64(8)
    for row in range(data.shape[0]):
        modulus = moduli[row]
        held = np.uint64(0)
        fill = np.uint64(0)
        at = 0
        for column in range(out.shape[1]):
            while fill < bits:
                held |= np.uint64(data[row, at]) << fill
                at += 1
                fill += eight
            total = out[row, column] + (held & mask)
            out[row, column] = total - modulus if total >= modulus else total
            held >>= bits
            fill -= bits


@kernel
def _add(total: Residues, term: Residues, moduli: Residues) -> None:
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            value = total[row, column] + term[row, column]
            total[row, column] = value - moduli[row] if value >= moduli[row] else value
