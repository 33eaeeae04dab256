"""Bytes that are too large for the database: one local directory, durable before anything refers to it.

All methods block; callers run them in threads. A blob appears under its name completely or not at
all. An object store can serve the same few methods.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from he_party.files import private_directory, private_opener, sync
from he_protocol.errors import ProblemError
from he_protocol.problems import DISK_FULL, WRONG_SIZE, ProblemType

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobWriter:
    """A blob that is being written. Closed without `commit`, it is removed."""

    def __init__(self, partial: Path, final: Path) -> None:
        self._partial = partial
        self._final = final
        self._committed = False
        with disk_full_as_problem():
            private_directory(partial.parent)
            self._file = open(partial, "w+b", opener=private_opener)  # noqa: SIM115 - closed by `close`

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; without a `commit` before, remove it."""
        try:
            with disk_full_as_problem():
                self._file.close()
        finally:
            if not self._committed:
                self._partial.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises `disk-full`."""
        with disk_full_as_problem():
            self._file.write(data)

    def seek(self, offset: int) -> None:
        """Write from `offset` on; what is skipped must be written before `commit`. Raises `disk-full`."""
        with disk_full_as_problem():
            self._file.seek(offset)

    def rename(self, final: Path) -> None:
        """Give it another name, in a folder that is there: one that is known when the bytes are, such as their hash."""
        self._final = final

    def reread(self, offset: int) -> BufferedRandom:
        """What was written so far, from `offset` on, for a check before `commit`."""
        with disk_full_as_problem():
            self._file.flush()
        self._file.seek(offset)
        return self._file

    def commit(self) -> None:
        """Make the bytes, then their name, durable. Raises `disk-full`."""
        with disk_full_as_problem():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._final)
            self._committed = True
            sync(self._final.parent)


class Blobs:
    """Named blobs in a local directory; names are relative paths such as "updates/3f2a"."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partials = root / "partial"
        self._durable: set[Path] = set()

    def prepare(self) -> None:
        """Make the directories. Raises `disk-full`, or OSError when the directory cannot be used."""
        with disk_full_as_problem():
            self._make_directory(self._partials)

    def probe(self) -> None:
        """Raises OSError or `disk-full` unless a small file can be written."""
        with self.writer("probe") as writer:
            writer.write(b"ok")

    def writer(self, name: str) -> BlobWriter:
        """Start a blob; several writers of one name do not disturb each other, the last commit wins."""
        return BlobWriter(self._partials / secrets.token_hex(16), self.place(name))

    def place(self, name: str) -> Path:
        """Where a blob may be put: its folder is there. Raises `disk-full`."""
        final = self._path(name)
        with disk_full_as_problem():
            self._make_directory(final.parent)
        return final

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole blob durably."""
        with self.writer(name) as writer:
            writer.write(data)
            writer.commit()

    def open(self, name: str) -> BinaryIO:
        """Raises FileNotFoundError."""
        return self._path(name).open("rb")

    def check_kept(self, names: Iterable[str], problem: ProblemType) -> None:
        """Raises `problem` unless all these blobs are there.

        Garbage collection deletes blobs that wait too long for a row. So a transaction that writes a row checks again.
        """
        for name in names:
            if not self._path(name).exists():
                raise ProblemError(problem, "the bytes waited so long that garbage collection took them", got=name)

    def size(self, name: str) -> int:
        """Bytes of a blob. Raises FileNotFoundError."""
        return self._path(name).stat().st_size

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._path(name).read_bytes()

    def piece(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a blob. Raises FileNotFoundError, or `wrong-size` when it ends before them."""
        with self.open(name) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise ProblemError(WRONG_SIZE, "the stored bytes end too early", expected=size, got=len(data))
        return data

    def delete(self, name: str) -> None:
        """Remove a blob, or a whole folder of blobs; nothing happens when it is not there."""
        path = self._path(name)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def names(self, folder: str, older_than: float) -> list[str]:
        """Blobs and folders directly in `folder` that were last written more than `older_than` seconds ago."""
        directory = self._path(folder)
        if not directory.is_dir():
            return []
        return [f"{folder}/{path.name}" for path in directory.iterdir() if _age(path) > older_than]

    def path(self, name: str) -> Path:
        """Where a blob is, or will be."""
        return self._path(name)

    def drop_partials(self, older_than: float) -> None:
        """Delete what interrupted writers left more than `older_than` seconds ago."""
        for path in self._partials.iterdir():
            if _age(path) > older_than:
                path.unlink(missing_ok=True)

    def _make_directory(self, directory: Path) -> None:
        """Make a directory with a durable name. One that a crash left may not be durable: sync again."""
        if directory in self._durable and directory.is_dir():
            return
        private_directory(directory)
        for made in (directory, *directory.parents):
            sync(made.parent)
            if made == self._root:
                break
        self._durable.add(directory)

    def _path(self, name: str) -> Path:
        path = self._root / name
        if ".." in path.parts:
            raise ValueError("a blob's name stays inside its directory")
        return path


@contextmanager
def disk_full_as_problem() -> Iterator[None]:
    """Turn "no space left" into `disk-full`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ProblemError(DISK_FULL, "nothing was stored; try again later") from error
        raise


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
