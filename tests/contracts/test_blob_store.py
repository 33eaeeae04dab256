"""`he_server.blobs.store.BlobStore`: as files, and in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from he_protocol.problems import NOT_FOUND, WRONG_SIZE
from he_server.blobs.local import LocalBlobs
from he_server.blobs.store import BlobStore
from he_testing.blobs import MemoryBlobs
from he_testing.problems import expect_problem


@pytest.fixture(params=["local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    made: BlobStore = MemoryBlobs() if request.param == "memory" else LocalBlobs(tmp_path)
    made.prepare()
    return made


def test_what_was_committed_is_there(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(b"one ")
        writer.write(memoryview(b"two"))
        assert not blobs.exists("updates/a")
        writer.commit("updates/a")
    assert blobs.exists("updates/a")
    assert (blobs.read("updates/a"), blobs.size("updates/a")) == (b"one two", 7)


def test_what_was_not_committed_leaves_nothing(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(b"half")
    with suppress(RuntimeError), blobs.writer() as writer:
        writer.write(b"half")
        raise RuntimeError
    assert not blobs.exists("updates/a")
    assert blobs.names("updates", -1.0) == []
    assert blobs.names("partial", -1.0) == []


def test_it_is_written_in_any_order_and_read_again_before_it_has_a_name(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.seek(3)
        writer.write(b"def")
        writer.seek(0)
        writer.write(b"abc")
        assert writer.reread(2).read() == b"cdef"
        assert writer.reread(0).read() == b"abcdef"
        writer.commit("sums/1")
    assert blobs.read("sums/1") == b"abcdef"


def test_the_last_commit_of_a_name_wins(blobs: BlobStore) -> None:
    with blobs.writer() as first, blobs.writer() as second:
        first.write(b"first")
        second.write(b"second")
        second.commit("models/m")
        assert blobs.read("models/m") == b"second"
        first.commit("models/m")
    assert blobs.read("models/m") == b"first"


def test_who_reads_keeps_what_it_began_to_read(blobs: BlobStore) -> None:
    blobs.put("models/m", b"before")
    with blobs.open("models/m") as file:
        blobs.put("models/m", b"after it")
        assert file.read() == b"before"
    with blobs.open("models/m") as file:
        blobs.delete("models/m")
        assert file.read() == b"after it"


def test_pieces(blobs: BlobStore) -> None:
    blobs.put("updates/a", b"0123456789")
    assert blobs.piece("updates/a", 3, 4) == b"3456"
    assert blobs.piece("updates/a", 10, 0) == b""
    with expect_problem(WRONG_SIZE):
        blobs.piece("updates/a", 8, 3)
    with blobs.open("updates/a") as file:
        file.seek(9)
        assert file.read(100) == b"9"


def test_what_is_not_there(blobs: BlobStore) -> None:
    for ask in (blobs.open, blobs.size, blobs.read):
        with pytest.raises(FileNotFoundError):
            ask("updates/none")
    with pytest.raises(FileNotFoundError):
        blobs.piece("updates/none", 0, 1)
    blobs.delete("updates/none")
    blobs.put("updates/a", b"x")
    blobs.check_kept(["updates/a"], NOT_FOUND)
    with expect_problem(NOT_FOUND, "updates/none"):
        blobs.check_kept(["updates/a", "updates/none"], NOT_FOUND)


def test_deleting_takes_a_blob_or_a_folder_and_nothing_beside_it(blobs: BlobStore) -> None:
    for name in ("models/a/1", "models/a/2", "models/ab/1", "updates/a"):
        blobs.put(name, b"x")
    blobs.delete("models/a")
    assert [blobs.exists(name) for name in ("models/a/1", "models/a/2", "models/ab/1", "updates/a")] == [
        False,
        False,
        True,
        True,
    ]
    blobs.delete("updates/a")
    assert not blobs.exists("updates/a")


def test_names_are_those_of_one_folder_and_old_enough(blobs: BlobStore) -> None:
    for name in ("models/t/1", "models/t/2", "models/u/1", "updates/a"):
        blobs.put(name, b"x")
    assert sorted(blobs.names("models", -1.0)) == ["models/t", "models/u"]
    assert sorted(blobs.names("models/t", -1.0)) == ["models/t/1", "models/t/2"]
    assert blobs.names("models/t", 3600.0) == []
    assert blobs.names("nothing", -1.0) == []


def test_many_at_once(blobs: BlobStore) -> None:
    def work(number: int) -> bytes:
        blobs.put(f"updates/{number}", bytes([number]) * 1000)
        return blobs.read(f"updates/{number}")

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(64))) == [bytes([number]) * 1000 for number in range(64)]
    assert len(blobs.names("updates", -1.0)) == 64


def test_it_can_be_probed_and_has_room(blobs: BlobStore) -> None:
    blobs.probe()
    assert blobs.free() > 0
    assert blobs.names("partial", -1.0) == []


def test_what_interrupted_writers_left_is_dropped_when_it_is_old(tmp_path: Path) -> None:
    """Of files only: what is in memory is gone with its process."""
    blobs = LocalBlobs(tmp_path)
    blobs.prepare()
    blobs.writer().write(b"never committed")
    (left,) = (tmp_path / "partial").iterdir()
    blobs.drop_partials(60.0)
    assert left.exists()
    os.utime(left, (0, 0))
    blobs.drop_partials(60.0)
    assert not left.exists()


def test_a_name_stays_inside(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.prepare()
    with pytest.raises(ValueError, match="inside"):
        blobs.read("../outside")
