"""Blobs in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import BinaryIO

from he_server.blobs.store import BlobStore, BlobWriter

PLENTY = 1 << 40


class MemoryWriter(BlobWriter):
    """A blob that is being written."""

    def __init__(self, store: MemoryBlobs) -> None:
        self._store = store
        self._data = BytesIO()

    def __enter__(self) -> MemoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._data.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data.write(data)

    def seek(self, offset: int) -> None:
        self._data.seek(offset)

    def reread(self, offset: int) -> BinaryIO:
        self._data.seek(offset)
        return self._data

    def commit(self, name: str) -> None:
        self._store.kept[name] = (self._data.getvalue(), self._store.clock())


class MemoryBlobs(BlobStore):
    """`kept`: bytes of every blob, and when they were written in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.kept: dict[str, tuple[bytes, float]] = {}
        self.clock = clock

    def prepare(self) -> None:
        """Nothing is needed."""

    def probe(self) -> None:
        """Always writable."""

    def free(self) -> int:
        return PLENTY

    def writer(self) -> MemoryWriter:
        return MemoryWriter(self)

    def open(self, name: str) -> BinaryIO:
        if name not in self.kept:
            raise FileNotFoundError(name)
        return BytesIO(self.kept[name][0])

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return len(file.read())

    def exists(self, name: str) -> bool:
        return name in self.kept

    def delete(self, name: str) -> None:
        for kept in list(self.kept):
            if kept == name or kept.startswith(f"{name}/"):
                del self.kept[kept]

    def names(self, folder: str, older_than: float) -> list[str]:
        newest: dict[str, float] = {}
        for name, (_, written) in self.kept.items():
            if name.startswith(f"{folder}/"):
                child = f"{folder}/{name[len(folder) + 1 :].split('/')[0]}"
                newest[child] = max(written, newest.get(child, 0.0))
        return [child for child, written in newest.items() if self.clock() - written > older_than]

    def drop_partials(self, older_than: float) -> None:
        """Writers that were interrupted leave nothing."""
