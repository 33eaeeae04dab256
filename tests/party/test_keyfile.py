"""Key files: mode, passphrase, and nothing overwritten or left behind."""

from __future__ import annotations

import os
import stat

import pytest

from he_party import keyfile
from he_party.keyfile import KeyRecord, read_private, write_private
from he_protocol.messages import to_json
from he_protocol.problems import BAD_KEY_FILE, MALFORMED, UNKNOWN_FIELD
from he_testing.problems import expect_problem
from tests.protocol.parties import ALICE, BOB

RECORD = KeyRecord("alice", ALICE.public, ALICE.private)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """PBKDF2 as asked for takes a quarter of a second."""
    monkeypatch.setattr(keyfile, "PBES2_ROUNDS", 1000)


@pytest.mark.parametrize("passphrase", ["", "correct horse battery", "pässword ✓ staple"])
def test_a_key_comes_back(tmp_path, passphrase):
    path = tmp_path / "deep" / "alice.key"
    write_private(path, RECORD, passphrase)
    assert read_private(path, KeyRecord, passphrase) == RECORD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["alice.key"]
    assert (ALICE.private in path.read_bytes()) is False
    assert path.read_bytes().startswith(b"{") is (not passphrase)


def test_the_record_signs_and_hides_its_secrets():
    assert RECORD.signing == ALICE
    assert repr(RECORD) == "KeyRecord(name='alice')"
    assert repr(ALICE.private) not in f"{RECORD}"


def test_the_rounds_are_owasps(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert keyfile.PBES2_ROUNDS >= 210_000


def test_an_existing_key_is_kept(tmp_path):
    path = tmp_path / "key"
    write_private(path, RECORD)
    other = KeyRecord("bob", BOB.public, BOB.private)
    with expect_problem(BAD_KEY_FILE, "not overwritten"):
        write_private(path, other)
    assert read_private(path, KeyRecord) == RECORD
    write_private(path, other, replace=True)
    assert read_private(path, KeyRecord) == other


def test_a_leftover_with_an_open_mode_does_not_pass_it_on(tmp_path):
    """O_TRUNC keeps the mode of an existing file: the secret would be world-readable."""
    path = tmp_path / "alice.key"
    leftover = tmp_path / "alice.key.partial"
    leftover.write_bytes(b"half")
    leftover.chmod(0o666)
    watched = os.open(leftover, os.O_RDONLY)  # somebody already has it open
    try:
        write_private(path, RECORD)
        assert os.read(watched, 100) == b"half"
    finally:
        os.close(watched)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_neighbours_do_not_share_a_partial_file(tmp_path):
    (tmp_path / "alice.partial").write_bytes(b"somebody else's")
    write_private(tmp_path / "alice.key", RECORD)
    assert (tmp_path / "alice.partial").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_key_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    write_private(path, RECORD)
    path.chmod(mode)
    with expect_problem(BAD_KEY_FILE, f"{mode:04o}"):
        read_private(path, KeyRecord)


def test_what_does_not_open_is_refused(tmp_path):
    path = tmp_path / "key"
    with expect_problem(BAD_KEY_FILE, "No such file"):
        read_private(path, KeyRecord)
    write_private(path, RECORD, "the right passphrase")
    for short in ("", "the right pass"[:-1]):  # too short to be the right one
        with expect_problem(BAD_KEY_FILE, "was not given"):
            read_private(path, KeyRecord, short)
    with expect_problem(BAD_KEY_FILE, "does not open"):
        read_private(path, KeyRecord, "the wrong passphrase")
    path.write_bytes(path.read_bytes()[:-4])
    with expect_problem(BAD_KEY_FILE, "does not open"):
        read_private(path, KeyRecord, "the right passphrase")
    path.write_bytes(b"")
    with expect_problem(BAD_KEY_FILE):
        read_private(path, KeyRecord)


@pytest.mark.parametrize(("passphrase", "good"), [("x", False), ("x" * 13, False), ("x" * 14, True), ("é" * 7, True)])
def test_short_passphrases_are_refused_before_anything_is_written(tmp_path, passphrase, good):
    """In bytes: what a dictionary finds protects nothing, and joserfc would refuse it with a warning only."""
    path = tmp_path / "deep" / "key"
    if good:
        write_private(path, RECORD, passphrase)
        assert read_private(path, KeyRecord, passphrase) == RECORD
    else:
        with expect_problem(BAD_KEY_FILE, "too short (expected at least 14 bytes"):
            write_private(path, RECORD, passphrase)
        assert not path.parent.exists()


def test_a_key_file_is_parsed_strictly(tmp_path):
    path = tmp_path / "key"
    write_private(path, RECORD)
    path.write_bytes(to_json(RECORD)[:-1] + b',"more":1}')
    with expect_problem(UNKNOWN_FIELD):
        read_private(path, KeyRecord)
    path.write_bytes(b"{")
    with expect_problem(MALFORMED):
        read_private(path, KeyRecord)
