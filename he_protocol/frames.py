"""The one binary frame: "HSF" and the version, a 4-byte little-endian length, a head (JSON or a JWS), then the body.

Updates, shares and the ceremony's posts all travel so; the head says how long the body must be. The version is in the
bytes and not in the media type: a resumed upload has another media type, and frames outlive their requests on disk.
"""

from __future__ import annotations

from he_protocol.errors import ProblemError
from he_protocol.problems import MALFORMED, TOO_LARGE
from he_protocol.version import PROTOCOL, unknown

CONTENT_TYPE = "application/vnd.hushsum.frame"
MAGIC = b"HSF" + bytes([PROTOCOL])
PREFIX_BYTES = len(MAGIC) + 4
HEAD_LIMIT = 256 * 1024


def start(head: bytes) -> bytes:
    """The bytes that come before the body."""
    return MAGIC + len(head).to_bytes(4, "little") + head


def head_size(prefix: bytes) -> int:
    """Length of the head, from the bytes before it. Raises `malformed`, `unknown-protocol` or `too-large`."""
    if len(prefix) != PREFIX_BYTES:
        raise ProblemError(MALFORMED, "the frame ends inside its prefix", expected=PREFIX_BYTES, got=len(prefix))
    if not prefix.startswith(MAGIC):
        raise unknown("a frame", prefix[: len(MAGIC)])
    size = int.from_bytes(prefix[len(MAGIC) :], "little")
    if size > HEAD_LIMIT:
        raise ProblemError(TOO_LARGE, "the frame's head is too long", expected=f"at most {HEAD_LIMIT}", got=size)
    return size


def split(frame: bytes) -> tuple[bytes, memoryview]:
    """Head and body of a whole frame in memory."""
    size = head_size(frame[:PREFIX_BYTES])
    if len(frame) < PREFIX_BYTES + size:
        raise ProblemError(MALFORMED, "the frame ends inside its head", expected=size, got=len(frame) - PREFIX_BYTES)
    return frame[PREFIX_BYTES : PREFIX_BYTES + size], memoryview(frame)[PREFIX_BYTES + size :]
