"""Header fields of tus 1.0.0, the protocol of resumable uploads (https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode

from he_protocol.errors import ProblemError
from he_protocol.problems import MALFORMED

VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,expiration,termination"
CONTENT_TYPE = "application/offset+octet-stream"
ALGORITHMS = {"sha1": 20, "sha256": 32}
"""Digests of a chunk and their bytes. The specification asks for SHA-1; here it finds damage, it proves nothing."""
UPDATE = "update"
"""The one metadata key: the update's id in hex."""

_DIGITS = re.compile(r"[0-9]{1,15}")
_METADATA_LIMIT = 4096


def number(text: str, field: str) -> int:
    """A length or an offset. Raises `malformed`.

    >>> number("42", "Upload-Offset")
    42
    """
    if _DIGITS.fullmatch(text) is None:
        raise ProblemError(MALFORMED, field, expected="a number of bytes", got=text[:80])
    return int(text)


def checksum(chunk: bytes) -> str:
    """The `Upload-Checksum` of a chunk, SHA-256."""
    return f"sha256 {b64encode(hashlib.sha256(chunk).digest()).decode()}"


def parse_checksum(text: str) -> tuple[str, bytes]:
    """Algorithm and digest of an `Upload-Checksum`. Raises `malformed`, also for an unknown algorithm.

    >>> parse_checksum("sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=")[0]
    'sha1'
    """
    algorithm, _, encoded = text.partition(" ")
    digest = _decode(encoded, "Upload-Checksum")
    if len(digest) != ALGORITHMS.get(algorithm):
        raise ProblemError(
            MALFORMED, "Upload-Checksum", expected=f"a digest by {' or '.join(ALGORITHMS)}", got=text[:80]
        )
    return algorithm, digest


def metadata(update_id: bytes) -> str:
    """The `Upload-Metadata` of one update's frame."""
    return f"{UPDATE} {b64encode(update_id.hex().encode()).decode()}"


def parse_metadata(text: str) -> dict[str, bytes]:
    """An `Upload-Metadata`: values by key. Raises `malformed`.

    >>> parse_metadata("filename dXBkYXRl,private")
    {'filename': b'update', 'private': b''}
    """
    if len(text) > _METADATA_LIMIT:
        raise ProblemError(
            MALFORMED, "Upload-Metadata", expected=f"at most {_METADATA_LIMIT} characters", got=len(text)
        )
    found: dict[str, bytes] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.strip().partition(" ")
        if not key or not key.isascii() or key in found:
            raise ProblemError(MALFORMED, "Upload-Metadata", expected="distinct keys, each with a value", got=pair[:80])
        found[key] = _decode(value, "Upload-Metadata")
    return found


def _decode(text: str, field: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError(MALFORMED, field, expected="base64", got=text[:80]) from None
