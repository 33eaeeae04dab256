"""HPKE (RFC 9180) to a key holder: the public, sealing half.

KEM X25519+ML-KEM-768, HKDF-SHA256, AES-256-GCM. Everything that an envelope must be bound to goes
into `info`, which RFC 9180 mixes into the key schedule: `cryptography` offers no `aad` for single
messages, and a fresh key per message makes the two equivalent.

Keys are checked before anybody seals to them: `check_key` what can be seen of one, `check_possession` that who
lists it has it (docs/adr/0024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import CURVE_PRIME
from he_protocol.problems import BAD_COMMITTEE, BAD_SIGNATURE, MALFORMED

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + 32
MLKEM_MODULUS = 3329
_MLKEM_SEED_BYTES = 32


@lru_cache(maxsize=1024)
def check_key(public: bytes) -> None:
    """A key that can be sealed to, in its one encoding.

    The modulus check of FIPS 203 section 7.2 for the ML-KEM half; the X25519 half is below 2^255 - 19 and of large
    order (RFC 7748 section 6.1). Raises `malformed`.
    """
    if len(public) != PUBLIC_BYTES:
        raise ProblemError(MALFORMED, "not a holder's HPKE key", expected=f"{PUBLIC_BYTES} bytes", got=len(public))
    if (most := _largest_coefficient(public[: MLKEM_PUBLIC_BYTES - _MLKEM_SEED_BYTES])) >= MLKEM_MODULUS:
        expected = f"coefficients below {MLKEM_MODULUS}"
        raise ProblemError(MALFORMED, "a holder's HPKE key, its ML-KEM half", expected=expected, got=most)
    point = public[MLKEM_PUBLIC_BYTES:]
    if int.from_bytes(point, "little") >= CURVE_PRIME or _low_order(point):
        expected = "a point of large order"
        raise ProblemError(MALFORMED, "a holder's HPKE key, its X25519 half", expected=expected, got=point.hex())


def check_distinct(keys: Sequence[bytes]) -> None:
    """No two of these HPKE keys share a half: what is sealed to one holder is for no other.

    Raises `bad-committee`.
    """
    if any(share_a_half(one, other) for one, other in combinations(keys, 2)):
        raise ProblemError(
            BAD_COMMITTEE, "two HPKE keys have a half in common", expected="a key of its own for each holder"
        )


def share_a_half(one: bytes, other: bytes) -> bool:
    """Whether two HPKE keys have their ML-KEM or their X25519 half in common."""
    return (
        one[:MLKEM_PUBLIC_BYTES] == other[:MLKEM_PUBLIC_BYTES] or one[MLKEM_PUBLIC_BYTES:] == other[MLKEM_PUBLIC_BYTES:]
    )


def possession_message(name: str, signer: bytes, public: bytes) -> bytes:
    """What the private half of an HPKE key signs, to show that the owner of the Ed25519 key `signer` has it."""
    return b"hushsum hpke possession\0" + signer + public + name.encode()


def edwards(point: bytes) -> bytes:
    """The Ed25519 key of sign 0 for an X25519 public key: y = (u - 1) / (u + 1) (RFC 7748 section 4.1)."""
    u = int.from_bytes(point, "little")
    return ((u - 1) * pow(u + 1, CURVE_PRIME - 2, CURVE_PRIME) % CURVE_PRIME).to_bytes(32, "little")


def check_possession(proof: bytes, public: bytes, message: bytes) -> None:
    """`proof` is an XEdDSA signature of `message` by the X25519 half of `public`. Raises `bad-signature`."""
    try:
        Ed25519PublicKey.from_public_bytes(edwards(public[MLKEM_PUBLIC_BYTES:])).verify(proof, message)
    except (InvalidSignature, ValueError):
        raise ProblemError(
            BAD_SIGNATURE, "the request does not show that its HPKE key is the requester's own"
        ) from None


def seal(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Encrypt to `public` (1,216 bytes: ML-KEM-768 key, then X25519 key), bound to `info`."""
    check_key(public)
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
        )
        return SUITE.encrypt(plaintext, key, info)
    except ValueError:  # the library's own idea of a key
        raise ProblemError(
            MALFORMED, "not a holder's HPKE key", expected="an encapsulation key (FIPS 203, 7.2)"
        ) from None


def _largest_coefficient(packed: bytes) -> int:
    """Of a vector of 12-bit coefficients (FIPS 203 section 4.2.1, ByteDecode_12)."""
    low, middle, high = np.frombuffer(packed, dtype=np.uint8).reshape(-1, 3).astype(np.int64).T
    return int(max((low | (middle & 15) << 8).max(), (middle >> 4 | high << 4).max()))


def _low_order(point: bytes) -> bool:
    try:
        X25519PrivateKey.from_private_bytes(bytes(32)).exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:  # the product is zero: clamped scalars are multiples of the cofactor
        return True
    return False
