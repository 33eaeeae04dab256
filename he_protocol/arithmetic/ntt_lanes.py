"""Products with the public polynomials of scheme `kahe`: 16 polynomials at a time, in 32-bit lanes.

Arrays have shape (N, 16): the innermost loop of every NTT stage is 16 contiguous lanes under one
twiddle. Products by constants are Shoup's (Harvey, "Faster arithmetic for number-theoretic
transforms", 2014): with w' = floor(w * 2^32 / q), x*w - floor(x*w' / 2^32)*q lies in [0, 2q) for
every x below 2^32. Values stay lazily below 2q, so q must be below 2^30.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic import ntt
from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.keystream import expand_words
from he_protocol.arithmetic.residues import U64Array

LANES = 16
MAX_PRIME = 1 << 30
SPARE = 128
"""Spare words of each group. Fewer than five are needed on average: more than 128 never."""

Lanes = npt.NDArray[np.uint32]


class CommonProduct:
    """a_j * s in Z_q[X]/(X^N+1) for one polynomial s and the public polynomials a_j, j = 0, 1, ...

    a_j is uniform in NTT form. The AES-256-CTR stream of `key` is cut into groups, each of N*16 words of
    32 bits and then `SPARE` words of 64 bits. With j = 16*g + l, residue k of a_j is word k*16 + l of group g modulo
    q; a word at or above the largest multiple of q below 2^32 would favour small residues, and is replaced by
    the group's next spare word modulo q (bias 2^-34 where that happens). `s`: int64, shape (N,).
    """

    def __init__(self, key: bytes, s: npt.NDArray[np.int64], modulus: int) -> None:
        if modulus >= MAX_PRIME:
            raise ValueError("the lanes need a modulus below 2^30")
        self._key = key
        self._degree = s.size
        self._modulus = np.uint32(modulus)
        self._limit = np.uint32((1 << 32) // modulus * modulus)
        lifted = ntt.lift(s[None, :], (modulus,))
        ntt.forward(lifted, (modulus,))
        # Includes the inverse transform's factor 1/N.
        factors = lifted[0, 0] * np.uint64(pow(self._degree, -1, modulus)) % np.uint64(modulus)
        self._factors = np.stack([factors, _shoup(factors, modulus)], axis=1).astype(np.uint32)
        roots = ntt.inverse_roots(modulus, self._degree)
        self._roots = np.stack([roots, _shoup(roots, modulus)], axis=1).astype(np.uint32)

    def groups(self, first: int, count: int = 1) -> Lanes:
        """The products with a_j for the polynomials of `count` groups: shape (16 * count, N), residues below q."""
        size = self._degree * LANES // 2
        words = expand_words(self._key, count * (size + SPARE), block=first * (size + SPARE) // 2)
        rows = np.empty((LANES * count, self._degree), dtype=np.uint32)
        cut = words.reshape(count, size + SPARE)
        if not _products(cut, self._limit, self._factors, self._roots, self._modulus, rows):
            raise RuntimeError("not enough spare words for a group")
        return rows


def _shoup(factors: U64Array, modulus: int) -> U64Array:
    return (factors << np.uint64(32)) // np.uint64(modulus)


@kernel
def _products(words: U64Array, limit: np.uint32, factors: Lanes, roots: Lanes, q: np.uint32, out: Lanes) -> bool:
    """From the groups' words, a row each, to the products' rows; False when spare words run out. Overwrites `words`."""
    size = words.shape[1] - SPARE
    for group in range(words.shape[0]):
        flat = words[group, :size].view(np.uint32)
        if not _replace_rejected(flat, words[group, size:], limit, q):
            return False
        _multiply(flat, factors, roots, q)
        _rows(flat.reshape(size * 2 // LANES, LANES), q, out[group * LANES : (group + 1) * LANES])
    return True


@kernel
def _replace_rejected(flat: Lanes, spare: U64Array, limit: np.uint32, q: np.uint32) -> bool:
    """Words at or above `limit` become the next spare words modulo q; False when those run out. In place."""
    used = 0
    for start in range(0, flat.size, 256):
        piece = flat[start : start + 256]
        largest = np.uint32(0)
        for j in range(piece.size):  # hardly any part has one, and this loop takes 16 words at once
            largest = max(largest, piece[j])
        if largest < limit:
            continue
        for j in range(piece.size):
            if piece[j] >= limit:
                if used == spare.size:
                    return False
                piece[j] = np.uint32(spare[used] % np.uint64(q))
                used += 1
    return True


@kernel
def _times(x: np.uint32, factor: np.uint32, shoup: np.uint32, q: np.uint32) -> np.uint32:
    """x * factor, below 2q, for any x. Both products are cut to 32 bits first: the compiler has 16 such lanes."""
    quotient = (np.uint64(x) * np.uint64(shoup)) >> np.uint64(32)
    return np.uint32(np.uint32(x * np.uint64(factor)) - np.uint32(np.uint32(quotient) * np.uint64(q)))


@kernel
def _butterfly(
    u: np.uint32, v: np.uint32, root: np.uint32, shoup: np.uint32, q: np.uint32
) -> tuple[np.uint32, np.uint32]:
    """u + v and (u - v) * root, both below 2q, for u and v below 2q (Gentleman-Sande)."""
    twice = np.uint32(2 * q)
    total = np.uint32(u + v)
    return min(total, np.uint32(total - twice)), _times(np.uint32(u + twice - v), root, shoup, q)


@kernel
def _multiply(flat: Lanes, factors: Lanes, roots: Lanes, q: np.uint32) -> None:
    """Each row times its factor, then the inverse NTT without 1/N; in place, below 2q, two stages in each pass."""
    _narrow_stages(flat, factors, roots, q)
    width, quads = 64, flat.size // 256
    while quads >= 1:
        for i in range(quads):
            piece = flat[4 * i * width : 4 * (i + 1) * width]
            _two_stages(
                piece[:width],
                piece[width : 2 * width],
                piece[2 * width : 3 * width],
                piece[3 * width :],
                roots[2 * quads + 2 * i],
                roots[2 * quads + 2 * i + 1],
                roots[quads + i],
                q,
            )
        quads //= 4
        width *= 4
    if 2 * width == flat.size:
        _one_stage(flat[:width], flat[width:], roots[1], q)


@kernel
def _narrow_stages(flat: Lanes, factors: Lanes, roots: Lanes, q: np.uint32) -> None:
    """The factors, and the stages of blocks 16 and 32 wide.

    Constant distances let the compiler see that the 16 lanes of one row are apart from the others.
    """
    quads = flat.size // 64
    for i in range(quads):
        first, second, third = roots[2 * quads + 2 * i], roots[2 * quads + 2 * i + 1], roots[quads + i]
        w, x, y, z = factors[4 * i], factors[4 * i + 1], factors[4 * i + 2], factors[4 * i + 3]
        for j in range(64 * i, 64 * i + 16):
            a, b = _times(flat[j], w[0], w[1], q), _times(flat[j + 16], x[0], x[1], q)
            c, d = _times(flat[j + 32], y[0], y[1], q), _times(flat[j + 48], z[0], z[1], q)
            a, b = _butterfly(a, b, first[0], first[1], q)
            c, d = _butterfly(c, d, second[0], second[1], q)
            flat[j], flat[j + 32] = _butterfly(a, c, third[0], third[1], q)
            flat[j + 16], flat[j + 48] = _butterfly(b, d, third[0], third[1], q)


@kernel
def _two_stages(
    w: Lanes, x: Lanes, y: Lanes, z: Lanes, first: Lanes, second: Lanes, third: Lanes, q: np.uint32
) -> None:
    """Four neighbouring blocks: pairs (w, x) and (y, z), then the halves of the pairs."""
    root0, shoup0, root1, shoup1, root2, shoup2 = first[0], first[1], second[0], second[1], third[0], third[1]
    for j in range(w.size):
        a, b = _butterfly(w[j], x[j], root0, shoup0, q)
        c, d = _butterfly(y[j], z[j], root1, shoup1, q)
        w[j], y[j] = _butterfly(a, c, root2, shoup2, q)
        x[j], z[j] = _butterfly(b, d, root2, shoup2, q)


@kernel
def _one_stage(upper: Lanes, lower: Lanes, root: Lanes, q: np.uint32) -> None:
    factor, shoup = root[0], root[1]
    for j in range(upper.size):
        upper[j], lower[j] = _butterfly(upper[j], lower[j], factor, shoup, q)


@kernel
def _rows(lanes: Lanes, q: np.uint32, out: Lanes) -> None:
    """Lanes back to rows, fully reduced; in tiles of 16 by 16, each a cache line of every row."""
    for start in range(0, lanes.shape[0], 16):
        for lane in range(16):
            for j in range(start, start + 16):
                value = lanes[j, lane]
                out[lane, j] = min(value, np.uint32(value - q))
