"""Negacyclic number-theoretic transform over primes below 2^50, in SEAL's order.

Forward: values of the polynomial at the odd powers of the *minimal* primitive 2N-th root, in
bit-reversed order (Longa and Naehrig, ePrint 2016/504, algorithms 1 and 2; the same convention as
Microsoft SEAL, so residues can be exchanged with it).

Products are reduced with a floating-point quotient: for a, b < p < 2^50 the double a*b/p is off by
less than one, so the exact 64-bit remainder a*b - q*p lies in [-p, 2p).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.residues import Residues, U64Array

MAX_PRIME = 1 << 50


@lru_cache(maxsize=16)
def _tables(modulus: int, degree: int) -> tuple[U64Array, U64Array]:
    """Powers of the root and of its inverse, bit-reversed: uint64 arrays of shape (degree,)."""
    root = minimal_root(modulus, degree)
    bits = degree.bit_length() - 1
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(degree)]
    tables = []
    for base in (root, pow(root, -1, modulus)):
        powers, value = [], 1
        for _ in range(degree):
            powers.append(value)
            value = value * base % modulus
        tables.append(np.array([powers[i] for i in order], dtype=np.uint64))
    return tables[0], tables[1]


def minimal_root(modulus: int, degree: int) -> int:
    """The smallest primitive 2*degree-th root of unity modulo a prime = 1 (mod 2*degree)."""
    if modulus >= MAX_PRIME or (modulus - 1) % (2 * degree):
        raise ValueError(f"modulus must be a prime below 2^50 and 1 modulo {2 * degree}")
    exponent = (modulus - 1) // (2 * degree)
    root = next(
        r for r in (pow(g, exponent, modulus) for g in range(2, 1000)) if pow(r, degree, modulus) == modulus - 1
    )
    smallest, value, square = root, root, root * root % modulus
    for _ in range(degree - 1):  # all primitive roots are the odd powers of one
        value = value * square % modulus
        smallest = min(smallest, value)
    return smallest


def forward(polynomials: Residues, moduli: tuple[int, ...]) -> None:
    """Transform in place; shape (polynomials, limbs, degree), limb i modulo `moduli[i]`."""
    degree = polynomials.shape[2]
    for limb, modulus in enumerate(moduli):
        _forward(polynomials[:, limb, :], _tables(modulus, degree)[0], np.uint64(modulus))


def inverse(polynomials: Residues, moduli: tuple[int, ...]) -> None:
    """Undo `forward` in place."""
    degree = polynomials.shape[2]
    for limb, modulus in enumerate(moduli):
        scale = np.uint64(pow(degree, -1, modulus))
        _inverse(polynomials[:, limb, :], _tables(modulus, degree)[1], np.uint64(modulus), scale)


def inverse_roots(modulus: int, degree: int) -> U64Array:
    """Powers of the inverse root in the order in which `inverse` uses them: shape (degree,)."""
    return _tables(modulus, degree)[1]


def multiply(left: Residues, right: Residues, moduli: tuple[int, ...]) -> Residues:
    """Pointwise product, shape (polynomials, limbs, degree); `right` may have one polynomial for all."""
    out = np.empty_like(left)
    _multiply(left, np.broadcast_to(right, left.shape), np.array(moduli, dtype=np.uint64), out)
    return out


def lift(signed: npt.NDArray[np.int64], moduli: tuple[int, ...]) -> Residues:
    """Small signed coefficients, shape (polynomials, degree), as residues for every limb."""
    wide = np.array(moduli, dtype=np.int64)[None, :, None]
    return (signed[:, None, :] % wide).astype(np.uint64)


@kernel
def product(a: np.uint64, b: np.uint64, p: np.uint64, over: float) -> np.uint64:
    """a * b mod p for a, b < p < 2^50, where `over` is 1 / p as a double."""
    quotient = np.uint64(np.float64(a) * np.float64(b) * over)
    rest = np.int64(a * b - quotient * p)
    if rest < 0:
        rest += np.int64(p)
    elif rest >= np.int64(p):
        rest -= np.int64(p)
    return np.uint64(rest)


@kernel
def _forward(rows: Residues, roots: U64Array, p: np.uint64) -> None:
    over = 1.0 / np.float64(p)
    degree = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        half = degree // 2
        blocks = 1
        while half >= 1:
            for i in range(blocks):
                root = roots[blocks + i]
                start = 2 * i * half
                for j in range(start, start + half):
                    u = row[j]
                    v = product(row[j + half], root, p, over)
                    total = u + v
                    row[j] = total - p if total >= p else total
                    row[j + half] = u - v if u >= v else u + p - v
            blocks *= 2
            half //= 2


@kernel
def _inverse(rows: Residues, roots: U64Array, p: np.uint64, scale: np.uint64) -> None:
    over = 1.0 / np.float64(p)
    degree = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        half = 1
        blocks = degree // 2
        while blocks >= 1:
            for i in range(blocks):
                root = roots[blocks + i]
                start = 2 * i * half
                for j in range(start, start + half):
                    u = row[j]
                    v = row[j + half]
                    total = u + v
                    row[j] = total - p if total >= p else total
                    row[j + half] = product(u - v if u >= v else u + p - v, root, p, over)
            blocks //= 2
            half *= 2
        for j in range(degree):
            row[j] = product(row[j], scale, p, over)


@kernel
def _multiply(left: Residues, right: Residues, moduli: U64Array, out: Residues) -> None:
    for i in range(left.shape[0]):
        for limb in range(left.shape[1]):
            p = moduli[limb]
            over = 1.0 / np.float64(p)
            for j in range(left.shape[2]):
                out[i, limb, j] = product(left[i, limb, j], right[i, limb, j], p, over)
