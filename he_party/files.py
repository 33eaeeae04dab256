"""Files and folders that only their owner may read, whatever the umask is: mode 0600 and 0700, written durably
and as a whole.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 completely or not at all, and durably. Raises IsADirectoryError for a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # what a crash left behind may have another mode
    with open(partial, "xb", opener=private_opener) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def private_opener(path: str, flags: int) -> int:
    """For `open(..., opener=private_opener)`: a file that is made is its owner's only."""
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)


def private_directory(path: Path) -> None:
    """Make a directory, and what is missing above it, for its owner only; one that was there is closed to others."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    close_to_others(path)


def close_to_others(path: Path) -> None:
    """Take everybody else's rights away. Nothing happens to what is not there, what is not ours, a shared /tmp or other
    folder of many, or what lies on a system of files that is read-only.
    """
    with suppress(FileNotFoundError, PermissionError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and not mode & stat.S_ISVTX and not is_of_many(path):
            try:
                path.chmod(mode & 0o700)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise


def is_of_many(path: Path) -> bool:
    """Whether a folder is more than one party's, whatever somebody said: / and what lies directly in it, the top of a
    mounted system of files, or a home. Root could close the whole machine to everybody else.
    """
    found = path.resolve()
    return found.is_dir() and (len(found.parts) <= 2 or found.is_mount() or found == Path.home())


def close_database(path: Path) -> None:
    """Let an SQLite file be its owner's only: it is made here if need be; SQLite gives its journals the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    for suffix in ("", "-wal", "-shm", "-journal"):
        close_to_others(path.with_name(path.name + suffix))


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    if os.name != "posix" and path.is_dir():  # only there a folder can be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
