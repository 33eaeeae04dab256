"""TenSEAL's vectors written by hand: only tests need them, the clients' are TenSEAL's own."""

from __future__ import annotations

from he_protocol.schemes.seal_codec import _message, _varint


def ckks_vector(values: int, object_: bytes, scale: float) -> bytes:
    """A TenSEAL CKKS vector of one ciphertext that packs `values` slots."""
    return _message((1, _varint(values)), (2, object_), (3, scale))
