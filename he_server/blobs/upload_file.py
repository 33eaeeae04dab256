"""Resumable uploads as files in one local directory.

A request that appends to one, or takes the finished frame from it, holds its lock, which works between threads and
between processes.
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
from he_server.blobs.store import Upload, UploadStore

BLOCK_BYTES = 1 << 20


class LocalUploads(UploadStore):
    """An upload's id is the name of its file below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, upload_id: str) -> None:
        with disk_full_as_problem():
            private_directory(self._root)
            (self._root / upload_id).touch(mode=0o600)
            sync(self._root)

    def upload(self, upload_id: str) -> UploadFile:
        return UploadFile(self._root / upload_id)

    def delete(self, upload_id: str) -> None:
        (self._root / upload_id).unlink(missing_ok=True)


class UploadFile(Upload):
    """The file of one upload, locked while it is open: neither lock nor descriptor outlives the request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._busy = threading.Lock()
        self._descriptor = -1
        self.size = 0

    def open(self) -> bool:
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
        left = memoryview(data)
        with self._busy, disk_full_as_problem():
            while left:
                written = os.write(self._descriptor, left)
                self.size += written
                left = left[written:]

    def truncate(self, size: int) -> None:
        with self._busy:
            os.ftruncate(self._descriptor, size)
            self.size = size

    def sync(self) -> None:
        with self._busy, disk_full_as_problem():
            os.fsync(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        with self._busy:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class UploadSource:
    """A finished upload, read as the frame that it is."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
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
        data = await asyncio.to_thread(self._upload.read, self._at, size)
        self._at += len(data)
        return data
