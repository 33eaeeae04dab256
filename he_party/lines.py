"""A file of lines that are only ever added, each durably. A line that a crash cut off was never there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from he_party.files import private_directory, sync
from he_party.locks import locked


class Lines:
    """The file at `path`, of mode 0600; it need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[bytes]:
        """All whole lines, without their ends."""
        return _whole(self._path.read_bytes()) if self._path.exists() else []

    @contextmanager
    def adding(self) -> Iterator[tuple[list[bytes], Callable[[bytes], None]]]:
        """The lines that are there, and what adds one; for one process and thread at a time, so that what was decided
        by the first still holds when the second is called.
        """
        private_directory(self._path.parent)
        with locked(self._path) as file:
            content = file.read()
            file.seek(content.rfind(b"\n") + 1)
            file.truncate()

            def add(line: bytes) -> None:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield _whole(content), add
        sync(self._path.parent)


def _whole(content: bytes) -> list[bytes]:
    return content.split(b"\n")[:-1]
