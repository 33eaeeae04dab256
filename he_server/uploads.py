"""Resumable uploads: what may be sent, and the file that it grows in.

The file's size is the upload's offset. Whoever appends to it, or takes the finished frame from it, holds its
lock, which works between threads and between processes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from he_protocol import framing, tus
from he_protocol.keyfile import private_directory
from he_protocol.problems import (
    ALREADY_IN_ROUND,
    CHECKSUM_MISMATCH,
    CLOCK_SKEW,
    MALFORMED,
    OVERLOADED,
    TOO_LARGE,
    TOO_MANY_UPLOADS,
    TUS_VERSION,
    UPLOAD_LOCKED,
    WRONG_MEDIA_TYPE,
    WRONG_OFFSET,
    WRONG_SIZE,
    WRONG_STATE,
    ProblemType,
    Refusal,
)
from he_protocol.task import Task
from he_server.blobs import room, sync_directory

BLOCK_BYTES = 1 << 20
_LATER = frozenset({ALREADY_IN_ROUND, CLOCK_SKEW, WRONG_STATE})


def check_version(version: str) -> None:
    """Raises `tus-version` unless the client speaks the one that the server does."""
    if version != tus.VERSION:
        raise Refusal(TUS_VERSION, "Tus-Resumable", expected=tus.VERSION, got=version[:80])


def check_media_type(media: str) -> None:
    """Raises `wrong-media-type` for what is no chunk."""
    if media != tus.CONTENT_TYPE:
        raise Refusal(WRONG_MEDIA_TYPE, "Content-Type", expected=tus.CONTENT_TYPE, got=media[:80])


def check_length(task: Task, length: int, limit: int) -> None:
    """Raises `too-large` above `limit` bytes, and `wrong-size` unless a frame of the task can be so long."""
    if length > limit:
        raise Refusal(TOO_LARGE, "the frame", expected=f"at most {limit} bytes", got=length)
    least = framing.PREFIX_BYTES + 1 + sum(part.size for part in task.body)
    most = least - 1 + framing.HEAD_LIMIT
    if not least <= length <= most:
        raise Refusal(WRONG_SIZE, "no update of this task has that size", expected=f"{least} to {most}", got=length)


def check_cap(unfinished: int, cap: int) -> None:
    """Raises `too-many-uploads` when a client that has so many unfinished ones may not begin another."""
    if unfinished >= cap:
        raise Refusal(
            TOO_MANY_UPLOADS, "finish or delete one, or let it expire", expected=f"fewer than {cap}", got=unfinished
        )


def check_promised(promised: int, room: int) -> None:
    """Raises `overloaded` when the disk could not hold every upload that was begun, `promised` bytes in all."""
    if promised > room:
        raise Refusal(
            OVERLOADED, "the disk has no room for one more upload", expected=f"at most {room} bytes", got=promised
        )


def check_offset(stands: int, named: int) -> None:
    """Raises `wrong-offset` unless a request is for the offset at which the upload stands."""
    if named != stands:
        raise Refusal(WRONG_OFFSET, "ask with HEAD and go on from there", expected=stands, got=named)


def check_fits(length: int, offset: int, size: int) -> None:
    """Raises `too-large` when `size` bytes from `offset` on pass the upload's end."""
    if offset + size > length:
        raise Refusal(TOO_LARGE, "the chunk", expected=f"at most {length - offset} bytes", got=size)


def check_chunk(expected: bytes, got: bytes) -> None:
    """Raises `checksum-mismatch` unless a chunk has the digest that was sent with it."""
    if expected != got:
        raise Refusal(CHECKSUM_MISMATCH, "the chunk is dropped", expected=expected.hex(), got=got.hex())


def claimed_update(metadata: str) -> bytes:
    """The id of the update that an upload is for, from its `Upload-Metadata`. Raises `malformed`."""
    text = tus.parse_metadata(metadata).get(tus.UPDATE, b"")
    if len(text) != 32 or not set(text) <= set(b"0123456789abcdef"):
        raise Refusal(MALFORMED, f"Upload-Metadata has no {tus.UPDATE!r}", expected="32 lower-case hex digits")
    return bytes.fromhex(text.decode())


def is_final(problem: ProblemType) -> bool:
    """Whether the same frame will always be refused so: then its bytes go. Otherwise it may be accepted later."""
    return problem.status < 500 and problem not in _LATER


class UploadFile:
    """The file of one upload, locked while it is open. All methods block.

    A request may be cancelled while a thread of it is in here: `close` waits for that thread, so that neither
    the lock nor the descriptor outlives the request.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._busy = threading.Lock()
        self._descriptor = -1
        self.size = 0

    @staticmethod
    def create(path: Path) -> None:
        """Make the empty file, durably; one that is there already stays as it is. Raises `disk-full`."""
        with room():
            private_directory(path.parent)
            path.touch(mode=0o600)
            sync_directory(path.parent)

    def open(self) -> bool:
        """Whether there is such a file. Raises `upload-locked` while somebody else holds it."""
        with self._busy:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                return False
            except BlockingIOError:
                raise Refusal(UPLOAD_LOCKED, "another request is writing to it") from None
            self.size = os.fstat(self._descriptor).st_size
            return True

    def append(self, data: bytes) -> None:
        """Raises `disk-full`; some of the bytes may be there then."""
        left = memoryview(data)
        with self._busy, room():
            while left:
                written = os.write(self._descriptor, left)
                self.size += written
                left = left[written:]

    def truncate(self, size: int) -> None:
        """Drop what is behind `size`."""
        with self._busy:
            os.ftruncate(self._descriptor, size)
            self.size = size

    def sync(self) -> None:
        """Make everything durable. Raises `disk-full`."""
        with self._busy, room():
            os.fsync(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; none at the end."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Release the file and its lock, if it is open."""
        with self._busy:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class FileSource:
    """A finished upload, read as the frame that it is."""

    def __init__(self, file: UploadFile) -> None:
        self._file = file
        self._at = 0

    async def readexactly(self, n: int) -> bytes:
        """The next `n` bytes. Raises asyncio.IncompleteReadError."""
        data = await self._read(n)
        if len(data) < n:
            raise asyncio.IncompleteReadError(data, n)
        return data

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Whatever is left."""
        while block := await self._read(BLOCK_BYTES):
            yield block

    async def _read(self, size: int) -> bytes:
        data = await asyncio.to_thread(self._file.read, self._at, size)
        self._at += len(data)
        return data
