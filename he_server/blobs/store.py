"""What the server asks of the place where bytes too large for the database lie.

Two things, since they are kept in different ways: blobs, written once, as a whole, under a name; and uploads, which
grow piece by piece over several requests. All methods block; callers run them in threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_SIZE, ProblemType


class BlobWriter(AbstractContextManager["BlobWriter"], Protocol):
    """A blob that is being written. Closed without `commit`, nothing stays of it."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises `disk-full`."""

    def seek(self, offset: int) -> None:
        """Write from `offset` on; what is skipped must be written before `commit`. Raises `disk-full`."""

    def reread(self, offset: int) -> BinaryIO:
        """What was written so far, from `offset` on, for a check before `commit`."""

    def commit(self, name: str) -> None:
        """Make the bytes durable, and then their name: who reads it finds all of them. Raises `disk-full`."""

    def close(self) -> None:
        """Release what the writer holds."""


class BlobStore(Protocol):
    """Named blobs, durable before anything refers to them; names are relative paths such as "updates/3f2a".

    Several writers of one name do not disturb each other: the last commit wins.
    """

    def prepare(self) -> None:
        """Make what the store needs. Raises `disk-full`, or OSError when the place cannot be used."""

    def probe(self) -> None:
        """Raises OSError or `disk-full` unless a small blob can be written."""

    def free(self) -> int:
        """Bytes that can still be written."""

    def writer(self) -> BlobWriter:
        """Begin a blob. Raises `disk-full`."""

    def open(self, name: str) -> BinaryIO:
        """A blob's bytes, seekable. Raises FileNotFoundError."""

    def size(self, name: str) -> int:
        """Bytes of a blob. Raises FileNotFoundError."""

    def exists(self, name: str) -> bool:
        """Whether there is such a blob."""

    def delete(self, name: str) -> None:
        """Remove a blob, or a whole folder of blobs; nothing happens when it is not there."""

    def names(self, folder: str, older_than: float) -> list[str]:
        """Blobs and folders directly in `folder` that were last written more than `older_than` seconds ago."""

    def drop_partials(self, older_than: float) -> None:
        """Delete what interrupted writers left more than `older_than` seconds ago."""

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole blob. Raises `disk-full`."""
        with self.writer() as writer:
            writer.write(data)
            writer.commit(name)

    def read(self, name: str) -> bytes:
        """A whole blob. Raises FileNotFoundError."""
        with self.open(name) as file:
            return file.read()

    def piece(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a blob. Raises FileNotFoundError, or `wrong-size` when it ends before them."""
        with self.open(name) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise ProblemError(WRONG_SIZE, "the stored bytes end too early", expected=size, got=len(data))
        return data

    def check_kept(self, names: Iterable[str], problem: ProblemType) -> None:
        """Raises `problem` unless all these blobs are there.

        Garbage collection deletes blobs that wait too long for a row. So a transaction that writes a row checks again.
        """
        for name in names:
            if not self.exists(name):
                raise ProblemError(problem, "the bytes waited so long that garbage collection took them", got=name)


class Upload(Protocol):
    """The bytes of one resumable upload, held by one request at a time; its size is the upload's offset.

    A request may be cancelled while a thread of it is in here: `close` waits for that thread.
    """

    size: int

    def append(self, data: bytes) -> None:
        """Raises `disk-full`; some of the bytes may be there then."""

    def truncate(self, size: int) -> None:
        """Drop what is behind `size`."""

    def sync(self) -> None:
        """Make everything durable. Raises `disk-full`."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; none at the end."""

    def open(self) -> bool:
        """Whether there is such an upload. Raises `upload-locked` while another request holds it."""

    def close(self) -> None:
        """Let others have it, if it is open."""


class UploadStore(Protocol):
    """Where resumable uploads grow."""

    def create(self, upload_id: str) -> None:
        """Begin an upload, durably; one that is there already stays as it is. Raises `disk-full`."""

    def upload(self, upload_id: str) -> Upload:
        """An upload, to be opened."""

    def delete(self, upload_id: str) -> None:
        """Remove an upload; nothing happens when it is not there."""
