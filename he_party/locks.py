"""Locks between the processes of one device, which the system takes back when their holder dies.

`fcntl` where there is one; elsewhere `msvcrt`, which locks ranges of bytes, and has no shared locks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from he_party.files import private_opener

SLOTS = 64
"""Bytes that stand for one lock: who shares it takes any of them, and who wants it alone takes all."""
FAR = 1 << 30
"""Where they are: what is locked cannot be read by others, so it lies behind whatever the file holds."""
POLL_SECONDS = 0.02


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[BinaryIO]:
    """A file, open for reading and writing and made if need be, while nobody else has it; or while others share it.

    Raises BlockingIOError when it is held and `wait` is false. A system that has neither module runs one process: there
    nothing is locked.
    """
    with os.fdopen(private_opener(os.fspath(path), os.O_RDWR | os.O_CREAT), "r+b") as file:
        if _fcntl is not None:
            _fcntl.flock(file, (_fcntl.LOCK_SH if shared else _fcntl.LOCK_EX) | (0 if wait else _fcntl.LOCK_NB))
            try:
                yield file
            finally:
                _fcntl.flock(file, _fcntl.LOCK_UN)  # a forked worker process may hold a copy of the descriptor
        elif _msvcrt is not None:
            first, count = _take(file.fileno(), shared, wait)
            try:
                yield file
            finally:
                file.flush()
                _range(file.fileno(), _msvcrt.LK_UNLCK, first, count)
        else:
            yield file


def _take(descriptor: int, shared: bool, wait: bool) -> tuple[int, int]:
    """The range that was locked."""
    while True:
        for first, count in [(slot, 1) for slot in range(SLOTS)] if shared else [(0, SLOTS)]:
            try:
                _range(descriptor, _msvcrt.LK_NBLCK, first, count)
                return first, count
            except OSError:  # somebody else has it
                continue
        if not wait:
            raise BlockingIOError
        time.sleep(POLL_SECONDS)


def _range(descriptor: int, how: int, first: int, count: int) -> None:
    """Locking begins where the file stands."""
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, FAR + first, os.SEEK_SET)
    try:
        _msvcrt.locking(descriptor, how, count)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
