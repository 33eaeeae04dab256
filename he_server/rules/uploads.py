"""Resumable uploads: what may be sent."""

from __future__ import annotations

from he_protocol import frames, tus
from he_protocol.errors import ProblemError
from he_protocol.problems import (
    CHECKSUM_MISMATCH,
    MALFORMED,
    OVERLOADED,
    TOO_LARGE,
    TOO_MANY_UPLOADS,
    TUS_VERSION,
    WRONG_MEDIA_TYPE,
    WRONG_OFFSET,
    WRONG_SIZE,
)
from he_protocol.task import Task


def check_version(version: str) -> None:
    """Raises `tus-version` unless the client speaks the one that the server does."""
    if version != tus.VERSION:
        raise ProblemError(TUS_VERSION, "Tus-Resumable", expected=tus.VERSION, got=version[:80])


def check_media_type(media: str) -> None:
    """Raises `wrong-media-type` for what is no chunk."""
    if media != tus.CONTENT_TYPE:
        raise ProblemError(WRONG_MEDIA_TYPE, "Content-Type", expected=tus.CONTENT_TYPE, got=media[:80])


def check_length(task: Task, length: int, limit: int) -> None:
    """Raises `too-large` above `limit` bytes, and `wrong-size` unless a frame of the task can be so long."""
    if length > limit:
        raise ProblemError(TOO_LARGE, "the frame", expected=f"at most {limit} bytes", got=length)
    least = frames.PREFIX_BYTES + 1 + sum(section.size for section in task.body)
    most = least - 1 + frames.HEAD_LIMIT
    if not least <= length <= most:
        raise ProblemError(
            WRONG_SIZE, "no update of this task has that size", expected=f"{least} to {most}", got=length
        )


def check_cap(unfinished: int, cap: int) -> None:
    """Raises `too-many-uploads` when a client with `unfinished` uploads may not begin another."""
    if unfinished >= cap:
        raise ProblemError(
            TOO_MANY_UPLOADS, "finish or delete one, or let it expire", expected=f"fewer than {cap}", got=unfinished
        )


def check_promised(promised: int, free_bytes: int) -> None:
    """Raises `overloaded` when the disk could not hold every upload that was begun, `promised` bytes in all."""
    if promised > free_bytes:
        raise ProblemError(
            OVERLOADED, "the disk has no room for one more upload", expected=f"at most {free_bytes} bytes", got=promised
        )


def check_offset(stands: int, named: int) -> None:
    """Raises `wrong-offset` unless a request is for the offset at which the upload stands."""
    if named != stands:
        raise ProblemError(WRONG_OFFSET, "ask with HEAD and go on from there", expected=stands, got=named)


def check_fits(length: int, offset: int, size: int) -> None:
    """Raises `too-large` when `size` bytes from `offset` on pass the upload's end."""
    if offset + size > length:
        raise ProblemError(TOO_LARGE, "the chunk", expected=f"at most {length - offset} bytes", got=size)


def check_chunk(expected: bytes, got: bytes) -> None:
    """Raises `checksum-mismatch` unless a chunk has the digest that was sent with it."""
    if expected != got:
        raise ProblemError(CHECKSUM_MISMATCH, "the chunk is dropped", expected=expected.hex(), got=got.hex())


def claimed_update(metadata: str) -> bytes:
    """The id of the update that an upload is for, from its `Upload-Metadata`. Raises `malformed`."""
    text = tus.parse_metadata(metadata).get(tus.UPDATE, b"")
    if len(text) != 32 or not set(text) <= set(b"0123456789abcdef"):
        raise ProblemError(MALFORMED, f"Upload-Metadata has no {tus.UPDATE!r}", expected="32 lower-case hex digits")
    return bytes.fromhex(text.decode())
