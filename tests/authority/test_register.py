"""The authority's register, and invitations: whom it certifies when somebody else passes requests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from he_authority import register as module
from he_authority.cli import app
from he_authority.register import Enrolled, Register, check_name
from he_client.cli import app as client_app
from he_party.enrolling import create
from he_protocol.identity.invitations import Invitation, check_invitation
from he_protocol.identity.jws import SigningKey, fingerprint, read_unverified
from he_protocol.messages import Credential, EnrollRequest, Role
from he_protocol.problems import BAD_INVITATION, BAD_SETTINGS, NAME_TAKEN, WRONG_ROLE
from he_testing.problems import expect_problem
from tests.support.parties import NOW

KEY, OTHER, AUTHORITY = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
DAY = 86_400
INVITATION = Invitation.issue(AUTHORITY, "client", int(NOW) + DAY, bytes(8))


def asked(name: str = "phone-1", role: Role = "client", key: SigningKey = KEY) -> EnrollRequest:
    return EnrollRequest(name, role, key.public, int(NOW))


def line(name: str = "phone-1", role: Role = "client", key: SigningKey = KEY) -> Enrolled:
    return Enrolled(name, role, key.public, int(NOW), int(NOW) + DAY)


def test_a_name_is_one_partys() -> None:
    check_name([], asked())
    check_name([line(), line("phone-2", key=OTHER)], asked())
    with expect_problem(NAME_TAKEN, fingerprint(KEY.public)):
        check_name([line()], asked(key=OTHER))
    check_name([line()], asked(key=OTHER), new_key=True)
    with expect_problem(NAME_TAKEN):
        check_name([line(), line(key=OTHER)], asked())  # the key that was lost is not taken again


@pytest.mark.parametrize("new_key", [False, True])
def test_a_name_keeps_its_role(new_key: bool) -> None:
    with expect_problem(NAME_TAKEN, "a client"):
        check_name([line()], asked(role="holder"), new_key=new_key)


def test_a_second_party_under_a_name_is_not_enrolled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys under one name would let one of them speak for the other: what a sum counts are names."""
    register = Register(tmp_path)

    def enroll(key: SigningKey) -> str:
        return register.enroll(AUTHORITY, key.sign(asked(key=key)), "client", now=NOW, days=1)[1]

    enroll(KEY)
    with expect_problem(NAME_TAKEN):
        enroll(OTHER)
    assert [entry.key for entry in register.read()] == [KEY.public]
    monkeypatch.setattr(module, "check_name", lambda *_, **__: None)
    assert read_unverified(enroll(OTHER), Credential).sub == "phone-1"


def test_what_is_refused_is_not_in_the_register(tmp_path: Path) -> None:
    register = Register(tmp_path)
    with expect_problem(WRONG_ROLE):
        register.enroll(AUTHORITY, KEY.sign(asked()), "holder", now=NOW, days=1)
    assert register.read() == []


def test_a_line_that_a_crash_cut_off_is_written_again(tmp_path: Path) -> None:
    register = Register(tmp_path)
    register.enroll(AUTHORITY, KEY.sign(asked()), "client", now=NOW, days=1)
    file = tmp_path / "enrolled.jsonl"
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes() + b'{"name": "pho')
    assert [entry.name for entry in register.read()] == ["phone-1"]
    register.enroll(AUTHORITY, OTHER.sign(asked("phone-2", key=OTHER)), "client", now=NOW, days=1)
    assert [entry.name for entry in register.read()] == ["phone-1", "phone-2"]


def test_an_invitation_survives_being_typed() -> None:
    assert Invitation.read(INVITATION.code) == INVITATION
    shown = INVITATION.code.upper()
    assert Invitation.read(f" {shown[:20]}-{shown[20:40]} {shown[40:]}\n") == INVITATION
    assert len(INVITATION.code) == 53
    assert INVITATION.key.hex() not in repr(INVITATION)


@pytest.mark.parametrize(
    "code",
    ["", "abc", INVITATION.code[:-1], INVITATION.code + "a" * 8, "1" * 53, "ü" * 53],
    ids=["nothing", "short", "cut off", "long", "digits", "letters"],
)
def test_what_is_no_code_is_refused(code: str) -> None:
    with expect_problem(BAD_INVITATION):
        Invitation.read(code)


def test_a_request_that_was_made_with_an_invitation_is_taken() -> None:
    accepted = INVITATION.accept(asked())
    check_invitation(AUTHORITY, accepted, {}, NOW)
    check_invitation(AUTHORITY, accepted, {INVITATION.id: KEY.public}, NOW)  # the same party again


@pytest.mark.parametrize(
    "change",
    [
        {"name": "mallory"},
        {"key": OTHER.public},
        {"created": 0},
        {"hpke": b"x"},
        {"possession": b"x"},
        {"invited": b""},
    ],
    ids=lambda change: str(*change),
)
def test_whoever_passes_a_request_on_cannot_change_it(change: dict[str, Any]) -> None:
    with expect_problem(BAD_INVITATION):
        check_invitation(AUTHORITY, replace(INVITATION.accept(asked()), **change), {}, NOW)


@pytest.mark.parametrize("byte", range(len(INVITATION.id)))
def test_an_invitation_that_was_changed_is_none(byte: int) -> None:
    changed = bytearray(INVITATION.id)
    changed[byte] ^= 1
    accepted = Invitation(bytes(changed), INVITATION.key).accept(asked())
    with expect_problem(BAD_INVITATION):
        check_invitation(AUTHORITY, accepted, {}, NOW)


def test_an_invitation_is_for_one_authority_one_role_one_time_and_one_party() -> None:
    accepted = INVITATION.accept(asked())
    with expect_problem(BAD_INVITATION, "this authority's"):
        check_invitation(OTHER, accepted, {}, NOW)
    with expect_problem(BAD_INVITATION, "another role"):
        check_invitation(AUTHORITY, INVITATION.accept(asked(role="holder")), {}, NOW)
    with expect_problem(BAD_INVITATION, "ended"):
        check_invitation(AUTHORITY, accepted, {}, NOW + DAY)
    with expect_problem(BAD_INVITATION, "somebody else"):
        check_invitation(AUTHORITY, accepted, {INVITATION.id: OTHER.public}, NOW)
    with expect_problem(BAD_INVITATION):
        check_invitation(AUTHORITY, asked(), {}, NOW)


def test_an_invitation_for_a_name_is_for_no_other() -> None:
    """Whoever has one party's kit takes no other party's place with it."""
    named = Invitation.issue(AUTHORITY, "client", int(NOW) + DAY, bytes(8), "phone-1")
    check_invitation(AUTHORITY, named.accept(asked()), {}, NOW)
    with expect_problem(BAD_INVITATION):
        check_invitation(AUTHORITY, named.accept(asked("phone-2")), {}, NOW)
    nameless = Invitation(INVITATION.id, named.key)  # the mark cannot be taken off
    with expect_problem(BAD_INVITATION):
        check_invitation(AUTHORITY, nameless.accept(asked("phone-2")), {}, NOW)
    assert Invitation.read(named.code) == named


def test_an_invitation_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One code, copied by whoever saw it, makes one client and not a crowd of them."""
    register = Register(tmp_path)

    def enroll(name: str, key: SigningKey) -> str:
        request = key.sign(INVITATION.accept(asked(name, key=key)))
        return register.enroll(AUTHORITY, request, "client", now=NOW, days=1, invited=True)[1]

    enroll("phone-1", KEY)
    with expect_problem(BAD_INVITATION, "somebody else"):
        enroll("phone-2", OTHER)
    monkeypatch.setattr(module, "check_invitation", lambda *_: None)
    assert read_unverified(enroll("phone-2", OTHER), Credential).sub == "phone-2"


def test_a_bad_invitation_is_refused_where_none_was_needed(tmp_path: Path) -> None:
    request = KEY.sign(replace(INVITATION.accept(asked()), invited=bytes(32)))
    with expect_problem(BAD_INVITATION):
        Register(tmp_path).enroll(AUTHORITY, request, "client", now=NOW, days=1)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an authority, in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    assert run("init").exit_code == 0
    return tmp_path


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_many_parties_are_enrolled_by_invitation(office: Path) -> None:
    assert run("invite", "--count", "3", "--out", "codes.txt").exit_code == 0
    codes = Path("codes.txt").read_text().split()
    assert len(set(codes)) == 3
    assert Path("codes.txt").stat().st_mode & 0o077 == 0
    for number, code in enumerate([*codes, codes[0]]):
        folder = f"phone-{number}"
        made = CliRunner().invoke(client_app, ["init", "--name", folder, "--data-dir", folder, "--invitation", code])
        assert made.exit_code == 0, made.output
        key = read_unverified((office / folder / "enroll-request.jws").read_text().strip(), EnrollRequest).key
        assert fingerprint(key) in made.output
    Path("credentials").mkdir()
    requests = [Path(f"phone-{number}/enroll-request.jws") for number in range(4)]
    done = run("enroll", *requests, "--role", "client", "--out", "credentials", "--invited")
    assert done.exit_code == 2
    assert "phone-3/enroll-request.jws" in done.stderr
    assert "1 of 4" in done.stderr
    assert {path.name for path in Path("credentials").iterdir()} == {f"phone-{number}.jws" for number in range(3)}
    listed = run("list")
    assert all(f"phone-{number}" in listed.output for number in range(3))
    assert "phone-3" not in listed.output


def test_an_uninvited_party_is_left_out_where_all_must_be(office: Path) -> None:
    create(office / "phone", "phone", "client", NOW)
    words = ["enroll", "phone/enroll-request.jws", "--role", "client", "--out", "phone.jws"]
    refused = run(*words, "--invited")
    assert (refused.exit_code, "bad-invitation" in refused.stderr) == (2, True)
    assert run(*words).exit_code == 0


def test_a_party_with_a_new_key_is_enrolled_in_words(office: Path) -> None:
    for folder in ("first", "second"):
        create(office / folder, "phone", "client", NOW)
    assert run("enroll", "first/enroll-request.jws", "--role", "client", "--out", "1.jws").exit_code == 0
    words = ["enroll", "second/enroll-request.jws", "--role", "client", "--out", "2.jws"]
    refused = run(*words)
    assert (refused.exit_code, "name-taken" in refused.stderr) == (2, True)
    assert not Path("2.jws").exists()
    assert run(*words, "--new-key").exit_code == 0


def test_what_cannot_be_meant_of_several_requests(office: Path) -> None:
    for name in ("a", "b"):
        create(office / name, name, "client", NOW)
    words = ["enroll", "a/enroll-request.jws", "b/enroll-request.jws", "--role", "client"]
    for more in (["--out", "one.jws"], ["--out", ".", "--new-key"], ["--out", ".", "--renews", "a/x.jws"]):
        refused = run(*words, *more)
        assert (refused.exit_code, BAD_SETTINGS.slug in refused.stderr) == (2, True)
    assert run(*words, "--out", ".").exit_code == 0
