"""The file that a resumable upload grows in.

Its size is the upload's offset. A request that appends to it, or takes the finished frame from it, holds its
lock, which works between threads and between processes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from he_party.files import private_directory, sync
from he_protocol.errors import ProblemError
from he_protocol.problems import UPLOAD_LOCKED
from he_server.blobs.local import disk_full_as_problem

BLOCK_BYTES = 1 << 20


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
        with disk_full_as_problem():
            private_directory(path.parent)
            path.touch(mode=0o600)
            sync(path.parent)

    def open(self) -> bool:
        """Whether there is such a file. Raises `upload-locked` while another request holds it."""
        with self._busy:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                return False
            except BlockingIOError:
                raise ProblemError(UPLOAD_LOCKED, "another request is writing to it") from None
            self.size = os.fstat(self._descriptor).st_size
            return True

    def append(self, data: bytes) -> None:
        """Raises `disk-full`; some of the bytes may be there then."""
        left = memoryview(data)
        with self._busy, disk_full_as_problem():
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
        with self._busy, disk_full_as_problem():
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
