"""Locks between processes, on systems with and without `fcntl`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from he_party import locks
from he_party.locks import FAR, SLOTS, locked
from tests.architecture.source import IMPORTABLE

WITHOUT = """
import sys
sys.modules["fcntl"] = None
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import he_client
for module in walk_packages(he_client.__path__, "he_client."):
    import_module(module.name)
from he_client.spool import Spool
from he_party.locks import locked

spool = Spool(Path(sys.argv[1]), "task", ("c0",))
with spool.encrypting():
    spool.begin("aa")
assert spool.pending() == []
with locked(Path(sys.argv[1]) / "file") as file:
    file.write(b"written")
print("done")
"""


class Ranges:
    """`msvcrt`'s locks, as its documentation has them: ranges of a file, for one descriptor each."""

    LK_NBLCK, LK_UNLCK = 1, 2

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.taken: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, how: int, count: int) -> None:
        start, inode = os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_ino
        places = [(inode, start + offset) for offset in range(count)]
        with self._guard:
            if how == self.LK_UNLCK:
                for place in places:
                    assert self.taken.pop(place) == descriptor
                return
            if any(place in self.taken for place in places):
                raise PermissionError(13, "Permission denied")
            self.taken |= dict.fromkeys(places, descriptor)


@pytest.fixture(params=["fcntl", "msvcrt"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "msvcrt":
        monkeypatch.setattr(locks, "_fcntl", None)
        monkeypatch.setattr(locks, "_msvcrt", Ranges())
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_one_at_a_time_or_many_that_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with (
        locked(path, shared=True),
        locked(path, shared=True, wait=False),
        pytest.raises(BlockingIOError),
        locked(path, wait=False),
    ):
        pass
    with locked(path, wait=False):
        pass


@pytest.mark.usefixtures("system")
def test_who_waits_gets_it(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def other() -> None:
        with locked(path):
            order.append("other")

    with locked(path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "other"]


@pytest.mark.usefixtures("system")
def test_the_file_is_read_and_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with locked(path) as file:
        file.write(b"some")
    with locked(path) as file:
        assert file.read() == b"some"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_locked_lies_behind_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = Ranges()
    monkeypatch.setattr(locks, "_fcntl", None)
    monkeypatch.setattr(locks, "_msvcrt", ranges)
    with locked(tmp_path / "file"):
        assert sorted(at for _, at in ranges.taken) == list(range(FAR, FAR + SLOTS))


def test_a_client_runs_where_there_is_no_fcntl(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, IMPORTABLE))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_without_either_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_fcntl", None)
    monkeypatch.setattr(locks, "_msvcrt", None)
    with locked(tmp_path / "file"), locked(tmp_path / "file", wait=False):
        assert (tmp_path / "file").exists()
