"""Products with the public polynomials of scheme `kahe`: 16 polynomials at a time, in 32-bit lanes.

Arrays have shape (N, 16): the innermost loop of every NTT stage is 16 contiguous lanes under one
twiddle. Products by constants are Shoup's (Harvey, "Faster arithmetic for number-theoretic
transforms", 2014): with w' = floor(w * 2^32 / q), x*w - floor(x*w' / 2^32)*q lies in [0, 2q) for
every x below 2^32. Values stay lazily below 2q, so q must be below 2^30.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_protocol import ntt
from he_protocol.kernel import kernel
from he_protocol.keystream import expand_words
from he_protocol.residues import Residues

LANES = 16
MAX_PRIME = 1 << 30

Lanes = npt.NDArray[np.uint32]


class CommonProduct:
    """a_j * s in Z_q[X]/(X^N+1) for one polynomial s and the public polynomials a_j, j = 0, 1, ...

    a_j is uniform in NTT form: residue k of it is word (g*N + k)*16 + l of AES-256-CTR under `key`,
    modulo q, where j = 16*g + l (64-bit words; bias below 2^-34). `s`: int64, shape (N,).
    """

    def __init__(self, key: bytes, s: npt.NDArray[np.int64], modulus: int) -> None:
        if modulus >= MAX_PRIME:
            raise ValueError("the lanes need a modulus below 2^30")
        self._key = key
        self._degree = s.size
        self._modulus = np.uint32(modulus)
        lifted = ntt.lift(s[None, :], (modulus,))
        ntt.forward(lifted, (modulus,))
        # The inverse transform's factor 1/N rides along, and 2^32 for the upper half of every word.
        low = lifted[0, 0] * np.uint64(pow(self._degree, -1, modulus)) % np.uint64(modulus)
        high = low * np.uint64((1 << 32) % modulus) % np.uint64(modulus)
        self._factors = np.stack([low, _shoup(low, modulus), high, _shoup(high, modulus)], axis=1).astype(np.uint32)
        roots = ntt.inverse_roots(modulus, self._degree)
        self._roots = np.stack([roots, _shoup(roots, modulus)], axis=1).astype(np.uint32)

    def group(self, number: int) -> Residues:
        """The products with a_j for the 16 polynomials of one group: shape (16, N), residues below q."""
        size = self._degree * LANES
        words = expand_words(self._key, size, block=number * size // 2)
        lanes = np.empty((self._degree, LANES), dtype=np.uint32)
        out = np.empty((LANES, self._degree), dtype=np.uint64)
        _scale(words.view("<u4").reshape(self._degree, LANES, 2), self._factors, self._modulus, lanes)
        _inverse(lanes, self._roots, self._modulus)
        _rows(lanes, self._modulus, out)
        return out


def _shoup(factors: Residues, modulus: int) -> Residues:
    return (factors << np.uint64(32)) // np.uint64(modulus)


@kernel
def _scale(halves: npt.NDArray[np.uint32], factors: Lanes, q: np.uint32, out: Lanes) -> None:
    """out = word * factor, below 2q; the word's halves are multiplied apart."""
    q64, twice = np.uint64(q), np.uint32(2 * q)
    for k in range(out.shape[0]):
        low, low_shoup = np.uint64(factors[k, 0]), np.uint64(factors[k, 1])
        high, high_shoup = np.uint64(factors[k, 2]), np.uint64(factors[k, 3])
        for lane in range(16):
            x, y = np.uint64(halves[k, lane, 0]), np.uint64(halves[k, lane, 1])
            first = x * low - ((x * low_shoup) >> np.uint64(32)) * q64
            second = y * high - ((y * high_shoup) >> np.uint64(32)) * q64
            total = np.uint32(first + second)
            out[k, lane] = min(total, np.uint32(total - twice))


@kernel
def _inverse(lanes: Lanes, roots: Lanes, q: np.uint32) -> None:
    """Inverse NTT without its factor 1/N, in place; Gentleman-Sande, values below 2q throughout."""
    flat = lanes.reshape(-1)
    width, blocks = 16, lanes.shape[0] // 2
    while blocks >= 1:
        for i in range(blocks):
            start = 2 * i * width
            upper, lower = flat[start : start + width], flat[start + width : start + 2 * width]
            _butterflies(upper, lower, roots[blocks + i, 0], roots[blocks + i, 1], q)
        blocks //= 2
        width *= 2


@kernel
def _butterflies(upper: Lanes, lower: Lanes, root: np.uint32, shoup: np.uint32, q: np.uint32) -> None:
    root64, shoup64, q64, twice = np.uint64(root), np.uint64(shoup), np.uint64(q), np.uint32(2 * q)
    for j in range(upper.size):
        u, v = upper[j], lower[j]
        total = np.uint32(u + v)
        upper[j] = min(total, np.uint32(total - twice))
        x = np.uint64(np.uint32(u + twice - v))
        lower[j] = np.uint32(x * root64 - ((x * shoup64) >> np.uint64(32)) * q64)


@kernel
def _rows(lanes: Lanes, q: np.uint32, out: Residues) -> None:
    """Lanes back to rows, fully reduced; in tiles, so that both sides stay in the cache."""
    for start in range(0, lanes.shape[0], 64):
        for lane in range(16):
            for j in range(start, start + 64):
                value = lanes[j, lane]
                out[lane, j] = min(value, np.uint32(value - q))
