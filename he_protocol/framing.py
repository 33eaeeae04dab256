"""The one binary frame: a 4-byte little-endian length, a head (JSON or a JWS), then the body.

Updates, shares and the ceremony's posts all travel so; the head says how long the body must be.
"""

from __future__ import annotations

from he_protocol.problems import MALFORMED, TOO_LARGE, Refusal

CONTENT_TYPE = "application/vnd.hushsum.frame"
PREFIX_BYTES = 4
HEAD_LIMIT = 256 * 1024


def start(head: bytes) -> bytes:
    """The bytes that come before the body."""
    return len(head).to_bytes(PREFIX_BYTES, "little") + head


def head_size(prefix: bytes) -> int:
    """Length of the head, from the first four bytes."""
    if len(prefix) != PREFIX_BYTES:
        raise Refusal(MALFORMED, "the frame ends inside its length", expected=PREFIX_BYTES, got=len(prefix))
    size = int.from_bytes(prefix, "little")
    if size > HEAD_LIMIT:
        raise Refusal(TOO_LARGE, "the frame's head is too long", expected=f"at most {HEAD_LIMIT}", got=size)
    return size


def split(frame: bytes) -> tuple[bytes, memoryview]:
    """Head and body of a whole frame in memory."""
    size = head_size(frame[:PREFIX_BYTES])
    if len(frame) < PREFIX_BYTES + size:
        raise Refusal(MALFORMED, "the frame ends inside its head", expected=size, got=len(frame) - PREFIX_BYTES)
    return frame[PREFIX_BYTES : PREFIX_BYTES + size], memoryview(frame)[PREFIX_BYTES + size :]
