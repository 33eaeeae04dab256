"""Scheme `kahe`: CKKS under one-time keys that add up (section 5 of the design), the public half.

Key-additive homomorphic encryption (Willow, ePrint 2024/936): update j of a client is
b_j = a_j * s + e_j + v_j under a fresh secret s, with public a_j that all clients share. The sum of
the b_j opens with the sum of the s, which is all that key holders ever release. Opening reveals one
noisy linear hint per client (Hint-RLWE). With two honest clients a secret of std 6.4 has, given the
opened sum, a conditional std of 6.4/sqrt(2) = 4.53, and more with more clients; the proof reduces it
to RLWE with half the std, 3.2, and that is what the security figures are estimated for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.ntt_lanes import LANES, CommonProduct, Lanes
from he_protocol.arithmetic.residues import ResidueLayout, Residues
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.scheme import DecryptBlock, Phase, Profile, ReadBlock, Section
from he_protocol.sharing import Sharing

SEED_BYTES = 32
TAG_BYTES = 16
ENVELOPE_BYTES = 1088 + 32 + TAG_BYTES
"""What an HPKE envelope adds: the ML-KEM-768 ciphertext, the X25519 share, the AES-GCM tag."""
WORD = 1 << 32
NONCE = bytes(12)
"""Of the explicit subshare's AES-256-GCM, whose key is drawn for that one message."""


@dataclass(frozen=True)
class KaheProfile(Profile):
    """Ring degree, modulus and error.

    `security_bits`: what the cheapest of the attacks usvp, dual, hybrid and bdd costs (log2) at half the error's
    std. `cheapest_attack` says which one that is.
    """

    degree: int
    modulus: int
    bits: int
    error_std: float
    error_tail: float
    security_bits: float
    cheapest_attack: str


# Security by the lattice-estimator (malb/lattice-estimator, June 2026) for secret and error of half the std that is
# used: what the reduction from Hint-RLWE proves for two honest clients (the conditional std is 1/sqrt(2) of it). 6.4
# and the tail cut at 8 standard deviations follow Willow's choice of a doubled error. With half of that degree 1024 is
# secure up to 18 bits (estimated for 2^18 and 2^16, above the primes), and opens with half the error.
PROFILES = {
    "kahe-30": KaheProfile("kahe-30", "kahe", 2048, 1073692673, 30, 6.4, 8.0, 260.0, "usvp"),
    "kahe-20": KaheProfile("kahe-20", "kahe", 1024, 1038337, 20, 6.4, 8.0, 194.8, "bdd"),
    "kahe-18": KaheProfile("kahe-18", "kahe", 1024, 249857, 18, 3.2, 8.0, 195.1, "bdd"),
    "kahe-16": KaheProfile("kahe-16", "kahe", 1024, 61441, 16, 3.2, 8.0, 220.8, "bdd"),
    "kahe-14": KaheProfile("kahe-14", "kahe", 512, 12289, 14, 6.4, 8.0, 149.9, "bdd"),
    # A ring so small that a simulated schedule takes milliseconds.
    "kahe-insecure": KaheProfile(
        "kahe-insecure", "kahe", 64, 1073741441, 30, 6.4, 8.0, 0.0, "none", insecure_for_tests=True
    ),
}


@dataclass(frozen=True)
class Kahe:
    """Public operations of `kahe`."""

    profile: KaheProfile
    ceremony: tuple[Phase, ...] = ()
    binding: bool = True
    """A wrong key is wrong by d, and what it opens by a*d: for both to be short is Ring-SIS (docs/adr/0025)."""

    @property
    def capacity(self) -> int:
        """Sums are centred modulo q."""
        return self.profile.modulus // 2

    @property
    def error_std(self) -> float:
        return self.profile.error_std

    def garbage_bits(self, largest: float, length: int, count: int) -> float:
        """Every coefficient is uniform: of the integers, and of the padding, where honest sums have errors only."""
        padding = self.layout(length).polynomials * self.profile.degree - length
        bounds = ((length, largest), (padding, largest_error(self.profile, count)))
        return sum(number * max(0.0, log2(self.profile.modulus / (2 * bound + 1))) for number, bound in bounds)

    def layout(self, length: int) -> ResidueLayout:
        """Layout of b for an update of `length` integers, one per coefficient."""
        p = self.profile
        return ResidueLayout(max(1, ceil(length / p.degree)), (p.modulus,), p.degree, p.bits)

    def body(self, length: int, sharing: Sharing) -> tuple[Section, ...]:
        layout = self.layout(length)
        return (
            Section("b", "sum", layout.size, layout),
            Section("shares", "key", self.explicit_bytes + sharing.holders * box_bytes(sharing), None),
        )

    @property
    def explicit_bytes(self) -> int:
        """The sealed explicit subshare: uint32 coefficients and an AES-GCM tag."""
        return 4 * self.profile.degree + TAG_BYTES

    def share_layout(self, length: int) -> ResidueLayout:
        """One uint32 vector for each subshare, whatever the model's size."""
        return ResidueLayout(1, (WORD,), self.profile.degree, 32)

    def check_openings(self, openings: int, max_clients: int, length: int) -> None:
        """Any number will do: every key is used once and no noise is reused."""

    def decryptor(self, released: Sequence[ReadBlock], length: int, count: int, epoch_id: bytes) -> DecryptBlock:
        """See `Scheme.decryptor`. What it opens carries the summed error, std `error_std` * sqrt(count)."""
        degree, modulus = self.profile.degree, self.profile.modulus
        error = largest_error(self.profile, count)
        key = combined_key(self.profile, [read(0, 1) for read in released], count)
        product = CommonProduct(common_key(epoch_id), key, modulus)

        def decrypt_block(first: int, total: Residues) -> Integers:
            if first % LANES:
                raise ValueError(f"a block begins with a whole group of {LANES} polynomials")
            rows = total.reshape(-1, degree)
            for at in range(0, len(rows), LANES):
                _subtract_centred(rows[at : at + LANES], product.groups((first + at) // LANES), modulus)
            opened = rows.reshape(-1).view(np.int64)
            values, padding = np.split(opened, [length - first * degree])
            check_padding(padding, error, count)
            return values

        return decrypt_block


def make(profile: KaheProfile) -> Kahe:
    return Kahe(profile)


def common_key(epoch_id: bytes) -> bytes:
    """AES key of the public polynomials: derived by hashing, so that no party can choose them."""
    return derive_key("hushsum/kahe/common-polynomials/v1", epoch_id)


def combined_key(profile: KaheProfile, released: Sequence[Residues], count: int) -> Integers:
    """The sum of `count` one-time secrets from the released subshares: centred modulo 2^32, shape (N,).

    Raises `combine-refused` when a coefficient is larger than honest secrets can sum to.
    """
    total = np.sum([subshare.reshape(-1) for subshare in released], axis=0, dtype=np.uint64) % np.uint64(WORD)
    key: Integers = np.asarray(total.astype(np.uint32).view(np.int32), dtype=np.int64)
    bound = largest_error(profile, count)
    worst = int(np.abs(key).max())
    if worst > bound:
        raise ProblemError(
            COMBINE_REFUSED,
            f"the combined key of {count} updates is out of range; a share, or a client's key shares, are wrong",
            expected=f"coefficients up to {bound}",
            got=worst,
        )
    return key


def largest_error(profile: KaheProfile, count: int) -> int:
    """The largest coefficient of the sum of `count` secrets, or errors: their tails are cut."""
    return int(profile.error_tail * profile.error_std * count)


def check_padding(padding: Integers, error: int, count: int) -> None:
    """What follows the last integer must be error alone: so wrong keys show however few parameters a model has.

    Raises `combine-refused`.
    """
    worst = int(np.abs(padding).max(initial=0))
    if worst > error:
        raise ProblemError(
            COMBINE_REFUSED,
            f"the padding of {count} updates does not open to errors; a share, or a client's update, is wrong",
            expected=f"coefficients up to {error}",
            got=worst,
        )


def box_bytes(sharing: Sharing) -> int:
    """Bytes of one holder's envelope: a seed for each subshare that it knows (all holders know equally many)."""
    return ENVELOPE_BYTES + SEED_BYTES * len(sharing.subshares_of(0))


def explicit_subshare(sharing: Sharing) -> int:
    """The subshare that is not a seed: the secret minus all others."""
    return sharing.subshares - 1


def expand_subshare(seed: bytes, degree: int) -> npt.NDArray[np.uint32]:
    """The subshare that a seed stands for: uint32, shape (degree,)."""
    return expand_words(seed, degree // 2).view("<u4").astype(np.uint32, copy=False)


def envelope_info(epoch_id: bytes, client: str, update_id: bytes, holder: str) -> bytes:
    """What an envelope is bound to; the explicit subshare is bound likewise, with no holder."""
    return derive_key("hushsum/kahe/envelope/v1", epoch_id, client.encode(), update_id, holder.encode())


@kernel
def _subtract_centred(rows: Residues, product: Lanes, modulus: int) -> None:
    """rows = (rows - product) mod q, centred, as the bits of int64; in place."""
    q = np.uint64(modulus)
    half = np.uint64(modulus // 2)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            value = rows[i, j] - product[i, j]
            value = min(value, value + q)
            rows[i, j] = value - q if value > half else value
