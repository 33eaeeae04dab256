"""Scheme `ckks` at a key holder: public-key shares from seeds, and flooded deterministic shares.

From the seed of subshare A follow a ternary secret s_A, an error e_A and a PRF key k_A; every holder of
the subshare computes the same. No one ever holds the sum of all s_A.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from he_holder.hpke_key import HpkeKey
from he_protocol.arithmetic import ntt, residues
from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.residues import Residues, U64Array
from he_protocol.messages import UpdateHeader
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.schemes.ckks import Ckks, CkksProfile, common_polynomial
from he_protocol.task import Task


def make_share_maker(task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> CkksShareMaker:
    return CkksShareMaker(
        _scheme(task), task.length, {subshare: SecretSubshare.derive(seed) for subshare, seed in seeds.items()}
    )


def make_dealer(task: Task) -> CkksDealer:
    scheme = _scheme(task)
    return CkksDealer(scheme, common_polynomial(scheme.profile, task.epoch_id))


def load_kernels(profile: CkksProfile) -> None:
    """Call every kernel that a ceremony and a release call, with a seed that stands for nobody's secret."""
    scheme, seed = Ckks(profile), bytes(32)
    dealer = CkksDealer(scheme, common_polynomial(profile, seed))
    subshare, layout = residues.pack(dealer.public_key_share(seed), dealer.layout), dealer.layout
    residues.fold(layout.zeros().reshape(layout.rows, layout.degree), subshare, layout)
    for _ in CkksShareMaker(scheme, 1, {0: SecretSubshare.derive(seed)}).begin().release(seed, 0):
        pass


def _scheme(task: Task) -> Ckks:
    scheme = task.scheme
    assert isinstance(scheme, Ckks)
    return scheme


@dataclass(frozen=True)
class SecretSubshare:
    """The three keys that follow from one subshare's seed."""

    secret_key: bytes = field(repr=False)
    error_key: bytes = field(repr=False)
    flood_key: bytes = field(repr=False)

    @classmethod
    def derive(cls, seed: bytes) -> SecretSubshare:
        names = ("secret", "error", "flood")
        return cls(*(derive_key(f"hushsum/ckks/{name}/v1", seed) for name in names))

    def secret(self, profile: CkksProfile) -> npt.NDArray[np.int64]:
        """Uniform ternary coefficients, shape (1, degree); bias of a 64-bit word modulo 3 is below 2^-62."""
        words = expand_words(self.secret_key, profile.degree)
        return (words % np.uint64(3)).astype(np.int64)[None, :] - 1

    def error(self, profile: CkksProfile) -> npt.NDArray[np.int64]:
        """Discrete Gaussian coefficients, shape (1, degree)."""
        gaussian = Gaussian(profile.error_std)
        words = expand_words(self.error_key, gaussian.words(profile.degree))
        return gaussian.sample(words, profile.degree)[None, :]


class CkksDealer:
    """b_A = -(a * s_A) + e_A over all primes, NTT form."""

    def __init__(self, scheme: Ckks, common: Residues) -> None:
        self.layout = scheme.key_layout()
        self._profile = scheme.profile
        self._common = common

    def public_key_share(self, seed: bytes) -> Residues:
        subshare, moduli = SecretSubshare.derive(seed), self._profile.moduli
        error = _transformed(subshare.error(self._profile), moduli)
        product = ntt.multiply(self._common, _transformed(-subshare.secret(self._profile), moduli), moduli)
        return (product + error) % np.array(moduli, dtype=np.uint64)[None, :, None]


class CkksShareMaker:
    """Holds the secret subshares of one epoch in NTT form."""

    def __init__(self, scheme: Ckks, length: int, subshares: Mapping[int, SecretSubshare]) -> None:
        self._profile = scheme.profile
        self._layout = scheme.layout(length)
        self._subshares = dict(sorted(subshares.items()))
        self._secrets = {
            number: _transformed(subshare.secret(self._profile), self._profile.data_moduli)
            for number, subshare in self._subshares.items()
        }

    def begin(self) -> CkksKeySum:
        return CkksKeySum(self._profile, self._layout, self._subshares, self._secrets)


class CkksKeySum:
    """The sum of c1 over the updates of one bucket."""

    def __init__(
        self,
        profile: CkksProfile,
        layout: residues.ResidueLayout,
        subshares: Mapping[int, SecretSubshare],
        secrets: Mapping[int, Residues],
    ) -> None:
        self._profile = profile
        self._layout = layout
        self._subshares = subshares
        self._secrets = secrets
        self._total = layout.zeros()

    def add(self, header: UpdateHeader, body: bytes) -> None:
        residues.fold(self._total.reshape(self._layout.rows, self._layout.degree), body, self._layout)

    def release(self, manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
        """See `KeySum.release`. Two buckets under one noise would show (c1 - c1') * s_A, and with it s_A."""
        context = (manifest_hash, bucket.to_bytes(8, "little"))
        for number, subshare in self._subshares.items():
            share = ntt.multiply(self._total, self._secrets[number], self._layout.moduli)
            noise = flood(
                derive_key("hushsum/ckks/flood/v1", subshare.flood_key, *context), self._layout, self._profile
            )
            ntt.forward(noise, self._layout.moduli)
            residues.add(share, noise, self._layout)
            yield number, residues.pack(share, self._layout)


def flood(key: bytes, layout: residues.ResidueLayout, profile: CkksProfile) -> Residues:
    """Flooding noise of one opened sum, uniform over the integers in [-2^B, 2^B), as residues.

    Integer noise from a PRF: a retry repeats the same bytes, and no low bit is ever zero by rounding.
    Each coefficient takes B+1 bits of a 128-bit word of AES-256-CTR.
    """
    count = layout.polynomials * layout.degree
    words = expand_words(key, 2 * count).reshape(layout.polynomials, layout.degree, 2)
    out = layout.zeros()
    constants = np.array([[pow(2, 64, q), pow(2, profile.flood_bits, q)] for q in layout.moduli], dtype=np.uint64)
    _reduce(words, np.uint64(profile.flood_bits + 1 - 64), np.array(layout.moduli, dtype=np.uint64), constants, out)
    return out


@kernel
def _reduce(words: U64Array, high_bits: np.uint64, moduli: U64Array, constants: U64Array, out: Residues) -> None:
    """out = (low + 2^64 * (high mod 2^high_bits)) - 2^B modulo each prime; constants hold 2^64 and 2^B."""
    mask = (np.uint64(1) << high_bits) - np.uint64(1)
    for limb in range(out.shape[1]):
        p = moduli[limb]
        over = 1.0 / np.float64(p)
        for i in range(out.shape[0]):
            for j in range(out.shape[2]):
                high = ntt.product(words[i, j, 1] & mask, constants[limb, 0], p, over)
                total = (words[i, j, 0] % p + high) % p
                offset = constants[limb, 1]
                out[i, limb, j] = total - offset if total >= offset else total + p - offset


def _transformed(signed: npt.NDArray[np.int64], moduli: tuple[int, ...]) -> Residues:
    lifted = ntt.lift(signed, moduli)
    ntt.forward(lifted, moduli)
    return lifted
