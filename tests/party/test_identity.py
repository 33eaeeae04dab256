"""A party loads its own identity, and refuses every folder that is not one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from he_authority.enrollment import issue_credential
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, REQUEST_FILE, create
from he_party.identity import Identity
from he_protocol.identity.jws import SigningKey, jwk_x, read_unverified, verify
from he_protocol.messages import EnrollRequest
from he_protocol.problems import BAD_KEY_FILE, BAD_SETTINGS, BAD_SIGNATURE, MALFORMED, NOT_ADDRESSED, ProblemType
from he_testing.problems import expect_problem
from tests.support.parties import NOW

AUTHORITY = SigningKey.generate()
PASSPHRASE = "correct horse battery staple"


def make(folder: Path, name: str = "phone", passphrase: str = "") -> str:
    request = create(folder, name, "client", NOW, passphrase=passphrase)
    (folder / CREDENTIAL_FILE).write_text(issue_credential(AUTHORITY, request, "client", now=NOW, days=1) + "\n")
    (folder / AUTHORITY_FILE).write_text(jwk_x(AUTHORITY.public) + "\n")
    return request


def test_what_was_made_is_loaded(tmp_path: Path) -> None:
    request = make(tmp_path)
    identity = Identity.load(tmp_path)
    asked = verify(request, EnrollRequest, identity.key.public)
    assert (identity.name, identity.authority) == ("phone", AUTHORITY.public)
    assert (asked.name, asked.role, asked.key) == ("phone", "client", identity.key.public)
    assert (tmp_path / REQUEST_FILE).read_text().strip() == request
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_passphrase_is_needed_again(tmp_path: Path) -> None:
    make(tmp_path, passphrase=PASSPHRASE)
    assert Identity.load(tmp_path, PASSPHRASE).name == "phone"
    with expect_problem(BAD_KEY_FILE):
        Identity.load(tmp_path)
    with expect_problem(BAD_KEY_FILE):
        Identity.load(tmp_path, PASSPHRASE + "!")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path)
    before = (tmp_path / KEY_FILE).read_bytes()
    with expect_problem(BAD_KEY_FILE, "exists"):
        make(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["", "Phone", "two words", "a" * 65, "phone\n"])
def test_a_name_that_no_credential_could_carry_makes_no_key(tmp_path: Path, name: str) -> None:
    with expect_problem(BAD_SETTINGS, "name"):
        create(tmp_path, name, "client", NOW)
    assert not (tmp_path / KEY_FILE).exists()


def of_another_authority(folder: Path) -> None:
    (folder / AUTHORITY_FILE).write_text(jwk_x(SigningKey.generate().public))


def of_another_key(folder: Path) -> None:
    make(folder / "other")
    shutil.copy(folder / "other" / CREDENTIAL_FILE, folder / CREDENTIAL_FILE)


def of_another_name(folder: Path) -> None:
    key = Identity.load(folder).key
    request = key.sign(EnrollRequest("somebody", "client", key.public, int(NOW)))
    (folder / CREDENTIAL_FILE).write_text(issue_credential(AUTHORITY, request, "client", now=NOW, days=1))


def tampered(folder: Path) -> None:
    header, payload, signature = (folder / CREDENTIAL_FILE).read_text().strip().split(".")
    other = "A" if signature[5] != "A" else "B"
    (folder / CREDENTIAL_FILE).write_text(f"{header}.{payload}.{signature[:5]}{other}{signature[6:]}")


def a_request_for_a_credential(folder: Path) -> None:
    request = (folder / REQUEST_FILE).read_text()
    assert read_unverified(request.strip(), EnrollRequest).name == "phone"
    (folder / CREDENTIAL_FILE).write_text(request)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / KEY_FILE).unlink(), BAD_KEY_FILE),
        (lambda folder: (folder / CREDENTIAL_FILE).unlink(), BAD_KEY_FILE),
        (lambda folder: (folder / AUTHORITY_FILE).unlink(), BAD_KEY_FILE),
        (lambda folder: (folder / KEY_FILE).chmod(0o644), BAD_KEY_FILE),
        (lambda folder: (folder / KEY_FILE).write_bytes(b'{"name":"phone"}'), MALFORMED),
        (lambda folder: (folder / CREDENTIAL_FILE).write_bytes(b"\xff\xfe\x00"), BAD_KEY_FILE),
        (lambda folder: (folder / CREDENTIAL_FILE).write_text("not a token"), MALFORMED),
        (lambda folder: (folder / AUTHORITY_FILE).write_text("c2hvcnQ"), MALFORMED),
        (of_another_authority, BAD_SIGNATURE),
        (tampered, BAD_SIGNATURE),
        (a_request_for_a_credential, BAD_SIGNATURE),
        (of_another_key, NOT_ADDRESSED),
        (of_another_name, NOT_ADDRESSED),
    ],
    ids=[
        "no key",
        "no credential",
        "no authority",
        "key open to others",
        "key is something else",
        "credential is binary",
        "credential is no token",
        "authority is too short",
        "another authority",
        "a tampered signature",
        "an enrollment request",
        "another key",
        "another name",
    ],
)
def test_refusals(tmp_path: Path, change: Callable[[Path], object], problem: ProblemType) -> None:
    make(tmp_path)
    change(tmp_path)
    with expect_problem(problem):
        Identity.load(tmp_path)


def test_the_private_key_shows_nowhere(tmp_path: Path) -> None:
    make(tmp_path)
    identity = Identity.load(tmp_path)
    assert repr(identity.key.private) not in repr(identity)
    assert jwk_x(identity.key.private) not in repr(identity)
