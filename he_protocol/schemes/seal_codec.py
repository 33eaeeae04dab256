"""The bytes of Microsoft SEAL 4 objects and of TenSEAL's protobuf around them.

Written by hand so that a joint public key can enter TenSEAL and residues can leave it, and so that
no one but the client has to import TenSEAL. Layouts were found by experiment with TenSEAL 0.3.18;
`tests/integration` holds them against TenSEAL itself.

A SEAL object is a 16-byte header (magic, header size, version, compression mode, total size) and
a payload. A ciphertext's payload: parms_id (32 bytes), is_ntt_form (1), number of polynomials,
degree, number of limbs, scale (double), correction factor, a nested object with the count of
residues, the residues (uint64, polynomial by polynomial, limb by limb, NTT form).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from he_protocol.arithmetic.residues import Residues
from he_protocol.errors import ProblemError
from he_protocol.problems import FINGERPRINT_MISMATCH, MALFORMED, PRIVATE_CONTEXT, RESIDUE_RANGE, TRAILING_BYTES

MAGIC = b"\x5e\xa1\x10\x04\x03"
HEADER_BYTES = 16
RESERVED = bytes(2)
PLAIN, ZSTD = 0, 2
_CKKS = 2
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")


def wrap(payload: bytes) -> bytes:
    """A SEAL object with an uncompressed payload."""
    return _header(len(payload)) + payload


def unwrap(data: bytes) -> tuple[int, bytes]:
    """Compression mode and payload (still compressed) of a SEAL object."""
    if len(data) < HEADER_BYTES or data[:5] != MAGIC or data[6:8] != RESERVED:
        raise ProblemError(MALFORMED, "not an object of SEAL 4.3", expected=MAGIC.hex(), got=data[:5].hex())
    size = struct.unpack_from("<Q", data, 8)[0]
    if size != len(data):
        problem = TRAILING_BYTES if size < len(data) else MALFORMED
        raise ProblemError(problem, "the SEAL object is not as long as its header says", expected=size, got=len(data))
    return data[5], data[HEADER_BYTES:]


def parms_id(degree: int, moduli: Sequence[int]) -> bytes:
    """SEAL's 32-byte name for CKKS parameters: BLAKE2b over 64-bit words, plain modulus 0 last."""
    words = np.array([_CKKS, degree, *moduli, 0], dtype="<u8")
    return hashlib.blake2b(words.tobytes(), digest_size=32).digest()


def ciphertext(polynomials: Residues, moduli: Sequence[int], scale: float) -> bytes:
    """A SEAL ciphertext object from residues of shape (polynomials, limbs, degree) in NTT form."""
    count, _, degree = polynomials.shape
    residues = np.ascontiguousarray(polynomials, dtype="<u8")
    return wrap(_ciphertext_head(count, moduli, degree, scale) + residues.tobytes())


def read_ciphertext(payload: bytes, moduli: Sequence[int], degree: int, scale: float) -> Residues:
    """Residues, shape (2, limbs, degree), from a fresh ciphertext's decompressed payload.

    Raises `fingerprint-mismatch` for other parameters, `trailing-bytes`, `malformed` or
    `residue-out-of-range`.
    """
    shape = (2, len(moduli), degree)
    head = _ciphertext_head(2, moduli, degree, scale)
    wanted = len(head) + 8 * shape[0] * shape[1] * shape[2]
    if len(payload) < len(head):
        raise ProblemError(MALFORMED, "the ciphertext ends early", expected=wanted, got=len(payload))
    if payload[:32] != head[:32]:
        raise ProblemError(FINGERPRINT_MISMATCH, "a ciphertext under other parameters")
    if payload[: len(head)] != head:  # polynomials, form, scale, correction, and the residues' own header
        raise ProblemError(
            MALFORMED, "not a fresh ciphertext", expected=head[32:].hex(), got=payload[32 : len(head)].hex()
        )
    if len(payload) != wanted:
        problem = TRAILING_BYTES if len(payload) > wanted else MALFORMED
        raise ProblemError(problem, "the ciphertext has another length", expected=wanted, got=len(payload))
    out = np.frombuffer(payload, dtype="<u8", offset=len(head)).reshape(shape)
    if (out >= np.array(moduli, dtype=np.uint64)[None, :, None]).any():
        raise ProblemError(RESIDUE_RANGE, "a residue of the ciphertext", expected="below its modulus")
    return out


def public_context(key: Residues, moduli: Sequence[int], scale: float) -> bytes:
    """A TenSEAL context that holds a public key and no secret key.

    key: shape (2, limbs, degree) with all primes (b, then a), NTT form; moduli: all primes.
    """
    degree = key.shape[2]
    numbers = b"".join(wrap(struct.pack("<Q", q)) for q in (*moduli, 0))
    parameters = wrap(struct.pack("<BQQ", _CKKS, degree, len(moduli)) + numbers)
    # A SEAL public key is a ciphertext's payload at key level, with scale 1.
    public = _message((1, ciphertext(key, moduli, 1.0)), (2, 7), (3, scale))
    return _message((1, parameters), (2, public))


def read_vector(data: bytes) -> list[bytes]:
    """The SEAL ciphertext objects inside a serialised TenSEAL CKKS vector."""
    return [value for field, value in _fields(data) if field == 2]


def refuse_private(context: bytes) -> None:
    """Refuse a serialised TenSEAL context with a private part (protobuf field 3).

    TenSEAL itself loads such a context without a word.
    """
    if any(field == 3 for field, _ in _fields(context)):
        raise ProblemError(
            PRIVATE_CONTEXT, "it must never leave its owner", expected="public part only", got="private part"
        )


def _header(payload: int) -> bytes:
    """A SEAL object's header before `payload` (uncompressed)."""
    return MAGIC + bytes([PLAIN]) + RESERVED + struct.pack("<Q", HEADER_BYTES + payload)


def _ciphertext_head(count: int, moduli: Sequence[int], degree: int, scale: float) -> bytes:
    """All of a fresh ciphertext's payload that comes before its residues."""
    size = count * len(moduli) * degree
    head = _CIPHERTEXT.pack(parms_id(degree, moduli), 1, count, degree, len(moduli), scale, 1)
    return head + _header(8 + 8 * size) + struct.pack("<Q", size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(*fields: tuple[int, bytes | int | float]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
        elif isinstance(value, float):
            out += _varint(number << 3 | 1) + struct.pack("<d", value)
        else:
            out += _varint(number << 3) + _varint(value)
    return out


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Top-level protobuf fields as (number, raw bytes)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ProblemError(MALFORMED, "not TenSEAL's protobuf: a number does not end")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key >> 32:  # protobuf truncates tags to 32 bits: 2^32 + tag would smuggle a field past its number
            raise ProblemError(MALFORMED, "not TenSEAL's protobuf: a tag above 32 bits", got=key)
        start = at
        match key & 7:
            case 0:
                varint()
            case 1:
                at += 8
            case 2:
                size = varint()
                start, at = at, at + size
            case kind:
                raise ProblemError(MALFORMED, "not TenSEAL's protobuf", got=f"wire type {kind}")
        if at > len(data):
            raise ProblemError(MALFORMED, "not TenSEAL's protobuf: a field ends after the data")
        yield key >> 3, data[start:at]
