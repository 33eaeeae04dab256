"""A key holder's HPKE key pair: the private, opening half of `he_protocol.envelope`."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from itertools import product

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from he_protocol.envelope import SUITE, check_possession, edwards
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_KEY_FILE, BAD_SIGNATURE, DIGEST_MISMATCH

MLKEM_SEED_BYTES = 64
PRIVATE_BYTES = MLKEM_SEED_BYTES + 32
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the base point of Ed25519 (RFC 8032 section 5.1)."""


@dataclass(frozen=True)
class HpkeKey:
    """`private` is the ML-KEM-768 seed (64 bytes), then the X25519 scalar (32 bytes)."""

    private: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.private) != PRIVATE_BYTES:
            raise ProblemError(
                BAD_KEY_FILE, "no HPKE key in the key file", expected=PRIVATE_BYTES, got=len(self.private)
            )

    @classmethod
    def generate(cls) -> HpkeKey:
        """A fresh key from the operating system's CSPRNG."""
        return cls(MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        """1,216 bytes, as committees list them."""
        mlkem, x25519 = self._halves()
        return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    def open(self, box: bytes, info: bytes) -> bytes:
        """What `he_protocol.envelope.seal` sealed to this key under the same `info`.

        Raises `digest-mismatch` when the box was made for another key or context, or was changed.
        """
        try:
            return SUITE.decrypt(box, MLKEM768X25519PrivateKey(*self._halves()), info)
        except (InvalidTag, ValueError):
            raise ProblemError(DIGEST_MISMATCH, "an envelope does not open with this key in this context") from None

    def prove(self, message: bytes) -> bytes:
        """An XEdDSA signature of `message` by the X25519 half (Perrin 2016), which proves possession of it.

        One is made for each key, when it is made. u-coordinates have no sign: which of the four sums is the signature
        shows when it is checked.
        """
        public, nonce = self.public, secrets.token_bytes(32)
        point = edwards(X25519PrivateKey.from_private_bytes(nonce).public_key().public_bytes_raw())
        hashed = hashlib.sha512(point + edwards(public[-32:]) + message).digest()
        response = int.from_bytes(hashed, "little") * _scalar(self.private[MLKEM_SEED_BYTES:])
        for sign, other in product((1, -1), repeat=2):
            proof = point + ((sign * _scalar(nonce) + other * response) % GROUP_ORDER).to_bytes(32, "little")
            try:
                check_possession(proof, public, message)
            except ProblemError:
                continue
            return proof
        raise ProblemError(BAD_SIGNATURE, "an HPKE key that cannot sign")  # no key that `generate` makes

    def _halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        return (
            MLKEM768PrivateKey.from_seed_bytes(self.private[:MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(self.private[MLKEM_SEED_BYTES:]),
        )


def _scalar(private: bytes) -> int:
    """What X25519 multiplies by (RFC 7748 section 5)."""
    return int.from_bytes(private, "little") & ((1 << 254) - 8) | 1 << 254
