"""The spool: a crash between any two steps loses no encrypted update and resends nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from he_client.spool import EncryptedUpdate, Spool
from he_party import files
from he_protocol.messages import SignedUpdate, to_json

HEAD = SignedUpdate("header", "credential")
AA, BB, CC = ("a" * 32, "b" * 32, "c" * 32)
BYTES = {"c0": b"zero" * 10, "c1": b"one"}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "updates", "task", ("c0", "c1"))


def reopened(spool: Spool, tmp_path: Path) -> Spool:
    """What the next process sees."""
    return Spool(tmp_path / "updates", "task", ("c0", "c1"))


def write_parts(sealed: EncryptedUpdate) -> None:
    for path in sealed.sections:
        path.write_bytes(BYTES[path.name])


def sealed_update(spool: Spool, update_id: str = AA) -> EncryptedUpdate:
    sealed = spool.begin(update_id)
    write_parts(sealed)
    spool.commit(sealed, HEAD)
    return sealed


def test_nothing_is_pending_where_nothing_was_done(spool: Spool) -> None:
    assert (spool.pending(), spool.acknowledged()) == ([], 0)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_without_a_head_it_was_never_sent_and_is_thrown_away(spool: Spool, tmp_path: Path, written: int) -> None:
    sealed = spool.begin(AA)
    for path in sealed.sections[:written]:
        path.write_bytes(b"half")
    later = reopened(spool, tmp_path)
    assert later.pending() == []
    assert not sealed.folder.exists()


def test_a_head_that_was_not_finished_counts_as_none(spool: Spool, tmp_path: Path) -> None:
    sealed = spool.begin(AA)
    write_parts(sealed)
    (sealed.folder / "head.partial").write_bytes(to_json(HEAD)[:5])
    assert reopened(spool, tmp_path).pending() == []
    assert not sealed.folder.exists()


def test_a_head_without_receipt_is_pending_with_the_same_bytes(spool: Spool, tmp_path: Path) -> None:
    sealed_update(spool)
    for _ in range(2):
        (found,) = reopened(spool, tmp_path).pending()
        assert found.update_id == AA
        assert found.head == to_json(HEAD)
        assert [path.read_bytes() for path in found.sections] == [BYTES["c0"], BYTES["c1"]]
        assert found.size == 43
        assert spool.header(found) == HEAD


def test_a_receipt_that_was_not_finished_counts_as_none(spool: Spool, tmp_path: Path) -> None:
    sealed = sealed_update(spool)
    (sealed.folder / "receipt.partial").write_bytes(b"half a rec")
    later = reopened(spool, tmp_path)
    assert [found.update_id for found in later.pending()] == [AA]
    assert later.acknowledged() == 0


def test_a_receipt_ends_it(spool: Spool, tmp_path: Path) -> None:
    sealed = sealed_update(spool)
    spool.finish(sealed, "receipt")
    later = reopened(spool, tmp_path)
    assert (later.pending(), later.acknowledged()) == ([], 1)
    assert (sealed.folder / "receipt").read_text() == "receipt"
    assert not any(path.exists() for path in sealed.sections)


def test_a_crash_between_receipt_and_clearing_leaves_no_ciphertext_for_ever(spool: Spool, tmp_path: Path) -> None:
    sealed = sealed_update(spool)
    (sealed.folder / "receipt").write_text("receipt")
    later = reopened(spool, tmp_path)
    assert (later.pending(), later.acknowledged()) == ([], 1)
    assert not any(path.exists() for path in sealed.sections)


def test_a_discarded_update_is_gone(spool: Spool, tmp_path: Path) -> None:
    sealed = sealed_update(spool)
    spool.discard(sealed)
    later = reopened(spool, tmp_path)
    assert (later.pending(), later.acknowledged()) == ([], 0)


def test_pending_updates_come_oldest_first(spool: Spool) -> None:
    for seconds, name in ((30, BB), (10, CC), (20, AA)):
        folder = sealed_update(spool, name).folder
        os.utime(folder, (seconds, seconds))
    assert [found.update_id for found in spool.pending()] == [CC, AA, BB]


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
def test_what_is_being_sealed_is_not_taken_for_abandoned(
    spool: Spool, tmp_path: Path, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defence:
        monkeypatch.setattr("he_party.locks._fcntl", None)
    with spool.encrypting():
        sealed = spool.begin(AA)
        write_parts(sealed)
        assert reopened(spool, tmp_path).pending() == []
        assert sealed.folder.exists() == defence
        if not defence:
            return
        spool.commit(sealed, HEAD)
    assert [found.update_id for found in reopened(spool, tmp_path).pending()] == [AA]


def test_when_a_sealer_dies_its_folder_is_removed(spool: Spool, tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from he_client.spool import Spool
spool = Spool(Path({str(tmp_path / "updates")!r}), "task", ("c0", "c1"))
with spool.encrypting():
    spool.begin({AA!r})
    os.abort()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode < 0
    assert (tmp_path / "updates" / "task" / AA).exists()
    assert spool.pending() == []
    assert not (tmp_path / "updates" / "task" / AA).exists()


def test_tasks_do_not_see_each_other(spool: Spool, tmp_path: Path) -> None:
    sealed_update(spool)
    assert Spool(tmp_path / "updates", "other", ("c0", "c1")).pending() == []


def test_an_update_id_is_used_once(spool: Spool) -> None:
    spool.begin(AA)
    with pytest.raises(FileExistsError):
        spool.begin(AA)


def test_the_parts_are_durable_before_the_head_and_the_head_before_its_name(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of fsync and rename: a power cut must not leave a head above bytes that never reached the disk."""
    steps: list[str] = []
    names: dict[int, str] = {}

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        names[descriptor] = Path(path).name
        return descriptor

    recording = SimpleNamespace(**vars(os))
    recording.open, recording.fsync = opened, lambda number: steps.append(f"fsync {names[number]}")
    monkeypatch.setattr(files, "os", recording)
    rename = Path.replace

    def replaced(path: Path, target: Any) -> Any:
        steps.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    sealed_update(spool)
    folders = ["fsync task", "fsync updates", f"fsync {tmp_path.name}"]
    head = ["fsync head.partial", "rename head.partial", f"fsync {AA}"]
    assert steps == [*folders, "fsync c0", "fsync c1", *head]
