"""HPKE (RFC 9180) to a key holder: the public, sealing half.

KEM X25519+ML-KEM-768, HKDF-SHA256, AES-256-GCM. Everything that an envelope must be bound to goes
into `info`, which RFC 9180 mixes into the key schedule: `cryptography` offers no `aad` for single
messages, and a fresh key per message makes the two equivalent.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

from he_protocol.problems import MALFORMED, Refusal

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + 32


def seal(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Encrypt to `public` (1,216 bytes: ML-KEM-768 key, then X25519 key), bound to `info`."""
    if len(public) != PUBLIC_BYTES:
        raise Refusal(MALFORMED, "not a holder's HPKE key", expected=f"{PUBLIC_BYTES} bytes", got=len(public))
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
        )
        return SUITE.encrypt(plaintext, key, info)
    except ValueError:  # coefficients above q, or a point of low order
        raise Refusal(MALFORMED, "not a holder's HPKE key", expected="an encapsulation key (FIPS 203, 7.2)") from None
