"""AES-256-CTR expansion of 32-byte keys (NIST SP 800-38A), and keys derived from a transcript."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
BLOCK_BYTES = 16
_ZEROS = memoryview(bytes(1 << 20))


def derive_key(domain: str, *fields: bytes) -> bytes:
    """SHA-256 of a domain string and length-prefixed fields: 32 bytes, injective in its input."""
    digest = hashlib.sha256()
    for field in (domain.encode(), *fields):
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.digest()


def expand_words(key: bytes, count: int, *, block: int = 0) -> npt.NDArray[np.uint64]:
    """`count` little-endian 64-bit words of the AES-256-CTR keystream of `key`, from 16-byte block `block` on."""
    counter = block.to_bytes(BLOCK_BYTES, "big")
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    out = np.empty(count, dtype="<u8")
    target = out.view(np.uint8).data
    for at in range(0, len(target), len(_ZEROS)):
        piece = target[at : at + len(_ZEROS)]
        encryptor.update_into(_ZEROS[: len(piece)], piece)
    return out
