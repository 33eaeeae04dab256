"""Scheme `ckks`: threshold CKKS under one joint public key, the public half (section 6 of the design).

Cheon, Kim, Kim, Song 2017 for CKKS; Asharov et al. 2012 and Mouchet et al. 2021 for opening by
key holders with flooding noise. Secure against an honest-but-curious server only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, log2, sqrt

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic import ntt
from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.residues import ResidueLayout, Residues, U64Array, add
from he_protocol.errors import ProblemError
from he_protocol.messages import Commitment, Confirmation, Contribution, Reveal
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED
from he_protocol.schemes.scheme import DecryptBlock, Phase, Profile, ReadBlock, Section
from he_protocol.sharing import Sharing

CEREMONY = (
    Phase("contribution", Contribution),
    Phase("commitment", Commitment),
    Phase("reveal", Reveal),
    Phase("confirmation", Confirmation),
)
"""Holders commit before anyone reveals; else the last one would choose the joint key."""
LARGEST_RESIDUE_OF_ROUNDING = 0.25
"""Opened slots must lie this close to an integer; honest ones are within about 2^-16."""


@dataclass(frozen=True)
class CkksProfile(Profile):
    """Parameters of RLWE, of the encoding, and of the flooding noise."""

    degree: int
    data_moduli: tuple[int, ...]
    special_modulus: int
    bits: int
    scale_bits: int
    error_std: float
    flood_bits: int
    statistical_bits: int
    tenseal: str

    @property
    def moduli(self) -> tuple[int, ...]:
        """All primes: the level at which public keys live."""
        return (*self.data_moduli, self.special_modulus)

    @property
    def slots(self) -> int:
        return self.degree // 2

    @property
    def scale(self) -> float:
        return 2.0**self.scale_bits


PROFILES = {
    "ckks-8192": CkksProfile(
        name="ckks-8192",
        scheme="ckks",
        degree=8192,
        # SEAL's CoeffModulus::Create(8192, {50, 50, 50, 50}). log QP = 200; the bound for 128 bits with a
        # ternary secret is 214 by the lattice-estimator of June 2026 (SEAL and the HE standard say 218).
        data_moduli=(1125899905351681, 1125899905744897, 1125899906629633),
        special_modulus=1125899906826241,
        bits=50,
        # Leaves 2^39 for an opened sum of integers, and puts a unit 2^26 above the flooding noise.
        scale_bits=110,
        error_std=3.2,  # homomorphicencryption.org standard, 2018
        flood_bits=84,
        statistical_bits=40,
        tenseal="0.3.18",  # its bytes do not load across releases
    )
}


@dataclass(frozen=True)
class Ckks:
    """Public operations of `ckks`."""

    profile: CkksProfile
    ceremony: tuple[Phase, ...] = CEREMONY
    binding: bool = False
    """A share is a term of the plaintext: a holder that adds an encoded vector to its own adds it to the sum."""

    @property
    def capacity(self) -> int:
        """|slot| * 2^scale_bits must stay below half of the data modulus, here with a bit to spare."""
        total = sum(log2(q) for q in self.profile.data_moduli)
        return 1 << int(total - self.profile.scale_bits - 2)

    @property
    def error_std(self) -> float:
        """Slots are rounded back to the integers that went in."""
        return 0.0

    def garbage_bits(self, largest: float, length: int, count: int) -> float:
        """Every slot is close to an integer by chance only."""
        return self.layout(length).polynomials * self.profile.slots * -log2(2 * LARGEST_RESIDUE_OF_ROUNDING)

    def layout(self, length: int) -> ResidueLayout:
        """Layout of c0 (and of c1) of an update of `length` integers."""
        p = self.profile
        return ResidueLayout(max(1, ceil(length / p.slots)), p.data_moduli, p.degree, p.bits)

    def body(self, length: int, sharing: Sharing) -> tuple[Section, ...]:
        layout = self.layout(length)
        return (Section("c0", "sum", layout.size, layout), Section("c1", "key", layout.size, layout))

    def share_layout(self, length: int) -> ResidueLayout:
        return self.layout(length)

    def key_layout(self) -> ResidueLayout:
        """Layout of one committee member's b, and of the joint one: one polynomial, all primes."""
        return ResidueLayout(1, self.profile.moduli, self.profile.degree, self.profile.bits)

    def check_openings(self, openings: int, max_clients: int, length: int) -> None:
        """Smudging: the flooding noise must hide the decryption noise of every opening of the epoch.

        B >= ceil(log2(N * openings * polynomials * e_inf)) + kappa - 1, with e_inf = 8*37*sqrt(n), the
        error of a sum of n fresh encryptions after SEAL's division by the special prime.
        """
        p = self.profile
        error = 8 * 37 * sqrt(max_clients)
        values = p.degree * openings * self.layout(length).polynomials
        needed = ceil(log2(values * error)) + p.statistical_bits - 1
        if needed > p.flood_bits:
            raise ProblemError(
                BAD_PLAN,
                f"{openings} openings of {length} values in one epoch need more flooding noise than {p.name} has",
                expected=f"at most {p.flood_bits} bits",
                got=needed,
            )

    def decryptor(self, released: Sequence[ReadBlock], length: int, count: int, epoch_id: bytes) -> DecryptBlock:
        layout, slots = self.layout(length), self.profile.slots

        def decrypt_block(first: int, total: Residues) -> Integers:
            block = replace(layout, polynomials=len(total))
            for read in released:
                add(total, read(first, len(total)), block)
            values = decode(total, self.profile)
            nearest = np.rint(values)
            off = float(np.abs(values - nearest).max(initial=0.0))
            if not off < LARGEST_RESIDUE_OF_ROUNDING or float(np.abs(nearest).max(initial=0.0)) > self.capacity:
                raise ProblemError(
                    COMBINE_REFUSED,
                    f"the opened values of {count} updates are not integers in range; a share or a ciphertext is wrong",
                    expected=f"within {LARGEST_RESIDUE_OF_ROUNDING} of integers up to {self.capacity}",
                    got=f"{off:.3g}",
                )
            return nearest[: length - first * slots].astype(np.int64)

        return decrypt_block


def make(profile: CkksProfile) -> Ckks:
    return Ckks(profile)


def common_polynomial(profile: CkksProfile, epoch_id: bytes) -> Residues:
    """The public `a` of an epoch, shape (1, limbs, degree), NTT form: a hash, so that no party can choose it.

    Each residue is a 128-bit word of AES-256-CTR reduced modulo its prime (bias below 2^-77).
    """
    key = derive_key("hushsum/ckks/common-polynomial/v1", epoch_id)
    words = expand_words(key, 2 * len(profile.moduli) * profile.degree).reshape(len(profile.moduli), -1, 2)
    rows = [
        [((int(high) << 64) | int(low)) % modulus for low, high in limb]
        for limb, modulus in zip(words, profile.moduli, strict=True)
    ]
    return np.array([rows], dtype=np.uint64)


def decode(polynomials: Residues, profile: CkksProfile) -> npt.NDArray[np.float64]:
    """CKKS decoding of plaintext polynomials in NTT form, shape (polynomials, limbs, degree).

    Slot j of a polynomial m is m(zeta^(3^j)) / scale with zeta = exp(i*pi/N), in SEAL's order; the real parts of all
    slots, shape (polynomials * N/2,). TenSEAL decodes the ciphertext (m, 0) to the same values.
    """
    coefficients = polynomials.copy()
    ntt.inverse(coefficients, profile.data_moduli)
    values = np.empty((len(coefficients), profile.degree), dtype=np.float64)
    _centre(coefficients, *_garner(profile.data_moduli), values)
    twist, order = _points(profile.degree)
    points = np.fft.ifft(values * (twist / profile.scale), axis=1) * profile.degree  # point k is m(zeta^(2k+1))
    out: npt.NDArray[np.float64] = points[:, order].real.reshape(-1)
    return out


@lru_cache(maxsize=4)
def _points(n: int) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.int64]]:
    """zeta^0 ... zeta^(n-1), and the numbers of the points that are slots."""
    powers = np.array([pow(3, j, 2 * n) for j in range(n // 2)])
    return np.exp(1j * np.pi * np.arange(n) / n), (powers - 1) // 2


def _garner(moduli: tuple[int, ...]) -> tuple[U64Array, U64Array, U64Array]:
    """Primes, inverses of p0 (mod p1), of p0*p1 (mod p2), and p0 (mod p2), for three primes."""
    p0, p1, p2 = moduli
    half = (p0 * p1 * p2) // 2
    digits = [half % p0, half // p0 % p1, half // (p0 * p1)]
    constants = [pow(p0, -1, p1), pow(p0 * p1, -1, p2), p0 % p2]
    return (
        np.array(moduli, dtype=np.uint64),
        np.array(constants, dtype=np.uint64),
        np.array(digits, dtype=np.uint64),
    )


@kernel
def _centre(
    coefficients: U64Array, moduli: U64Array, constants: U64Array, half: U64Array, out: npt.NDArray[np.float64]
) -> None:
    """Centred value of every coefficient, from its residues modulo three primes, as the nearest doubles.

    Garner's mixed-radix digits x = d0 + p0*(d1 + p1*d2); a value above half of the modulus is
    negated digit by digit before it becomes a double, so small negatives keep all their bits.
    """
    p0, p1, p2 = moduli[0], moduli[1], moduli[2]
    over1, over2 = 1.0 / np.float64(p1), 1.0 / np.float64(p2)
    for i in range(coefficients.shape[0]):
        for j in range(coefficients.shape[2]):
            d0 = coefficients[i, 0, j]
            r1, r2 = coefficients[i, 1, j], coefficients[i, 2, j]
            low1 = d0 % p1
            d1 = ntt.product(r1 - low1 if r1 >= low1 else r1 + p1 - low1, constants[0], p1, over1)
            low2 = (ntt.product(d1 % p2, constants[2], p2, over2) + d0 % p2) % p2
            d2 = ntt.product(r2 - low2 if r2 >= low2 else r2 + p2 - low2, constants[1], p2, over2)
            negative = d2 > half[2] or (d2 == half[2] and (d1 > half[1] or (d1 == half[1] and d0 > half[0])))
            if negative:  # modulus - x, digit by digit: x + y = modulus = (p0-1) + p0*((p1-1) + p1*(p2-1)) + 1
                d0 = p0 - d0
                d1 = p1 - np.uint64(1) - d1
                d2 = p2 - np.uint64(1) - d2
            value = np.float64(d0) + np.float64(p0) * (np.float64(d1) + np.float64(p1) * np.float64(d2))
            out[i, j] = -value if negative else value
