"""Blobs as files in one local directory."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from he_party.files import private_directory, private_opener, sync
from he_protocol.errors import ProblemError
from he_protocol.problems import DISK_FULL
from he_server.blobs.store import BlobStore, BlobWriter

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalWriter(BlobWriter):
    """A file among the unfinished ones, which gets its name by `commit`."""

    def __init__(self, store: LocalBlobs, partial: Path) -> None:
        self._store = store
        self._partial = partial
        self._committed = False
        with disk_full_as_problem():
            private_directory(partial.parent)
            self._file = open(partial, "w+b", opener=private_opener)  # noqa: SIM115 - closed by `close`

    def __enter__(self) -> LocalWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        try:
            with disk_full_as_problem():
                self._file.close()
        finally:
            if not self._committed:
                self._partial.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with disk_full_as_problem():
            self._file.write(data)

    def seek(self, offset: int) -> None:
        with disk_full_as_problem():
            self._file.seek(offset)

    def reread(self, offset: int) -> BufferedRandom:
        with disk_full_as_problem():
            self._file.flush()
        self._file.seek(offset)
        return self._file

    def commit(self, name: str) -> None:
        with disk_full_as_problem():
            final = self._store.place(name)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(final)
            self._committed = True
            sync(final.parent)


class LocalBlobs(BlobStore):
    """A blob's name is its path below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partials = root / "partial"
        self._durable: set[Path] = set()

    def prepare(self) -> None:
        with disk_full_as_problem():
            self._make_directory(self._partials)

    def probe(self) -> None:
        with self.writer() as writer:
            writer.write(b"ok")

    def free(self) -> int:
        return shutil.disk_usage(self._root).free

    def writer(self) -> LocalWriter:
        return LocalWriter(self, self._partials / secrets.token_hex(16))

    def place(self, name: str) -> Path:
        """The path of a blob, whose folder is there then."""
        final = self._path(name)
        self._make_directory(final.parent)
        return final

    def open(self, name: str) -> BinaryIO:
        return self._path(name).open("rb")

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def exists(self, name: str) -> bool:
        return self._path(name).exists()

    def delete(self, name: str) -> None:
        path = self._path(name)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def names(self, folder: str, older_than: float) -> list[str]:
        directory = self._path(folder)
        if not directory.is_dir():
            return []
        return [f"{folder}/{path.name}" for path in directory.iterdir() if _age(path) > older_than]

    def drop_partials(self, older_than: float) -> None:
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
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError("a blob's name stays inside its directory")
        return self._root / inside


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
