"""`he-authority revoke` and `he-server revoke`: from a stolen key to a server that does not hear it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from he_authority.cli import app as authority_app
from he_authority.revocations import revoke
from he_party.enrolling import create
from he_party.keyfile import KeyRecord, read_private
from he_protocol.identity.revocation import Revocations, key_digest
from he_protocol.messages import REVOKED_LIMIT, RevocationList
from he_protocol.problems import BAD_SIGNATURE, TOO_LARGE
from he_server.cli.main import app as server_app
from he_testing.clocks import FakeClock
from he_testing.parties import Authority
from he_testing.problems import expect_problem
from tests.support.parties import NOW


def run(app: Typer, *args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def done(app: Typer, *args: object) -> str:
    result = run(app, *args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority, a client that it has enrolled, and a server's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    done(authority_app, "init")
    create(Path("phone"), "phone", "client", NOW)
    done(authority_app, "enroll", "phone/enroll-request.jws", "--role", "client", "--out", "phone/credential.jws")
    done(server_app, "init", "--data-dir", "server", "--name", "aggregator")
    Path("server/authority.pub").write_text(Path("authority/authority.pub").read_text())
    return tmp_path


def test_from_a_stolen_key_to_the_servers_list(office: Path) -> None:
    made = ["revoke", "--out", "1.jws", "--credential", "phone/credential.jws"]
    assert "list 1, 1 revoked keys, valid 30 days" in done(authority_app, *made)
    assert done(server_app, "revoke", "1.jws", "--data-dir", "server") == "list 1, 1 revoked keys\n"
    assert "list 2, 1 revoked" in done(authority_app, "revoke", "--previous", "1.jws", "--out", "2.jws")
    done(server_app, "revoke", "2.jws", "--data-dir", "server")
    back = run(server_app, "revoke", "1.jws", "--data-dir", "server")
    assert back.exit_code == 2
    assert back.stderr.rstrip().endswith("[old-revocations]")
    phone = read_private(Path("phone/identity.key"), KeyRecord)
    authority = read_private(Path("authority/authority.key"), KeyRecord).public
    assert Revocations.read(Path("2.jws").read_text().strip(), authority).covers(phone.public)


def test_what_is_no_list_is_refused(office: Path) -> None:
    Path("bad.jws").write_bytes(b"\xff")
    for file in ("bad.jws", "none.jws"):
        result = run(server_app, "revoke", file, "--data-dir", "server")
        assert result.exit_code == 2
        assert result.stderr.rstrip().endswith("[bad-settings]")


def test_lists_count_up_and_keep_their_keys() -> None:
    authority = Authority(clock=FakeClock())
    ada, bob = (authority.party(name, "client") for name in ("ada", "bob"))
    first = revoke(authority.key, [ada.credential], None, now=NOW, days=1)
    second = Revocations.read(
        revoke(authority.key, [bob.credential, ada.credential], first, now=NOW, days=2), authority.key.public
    )
    assert (second.number, second.valid_until) == (2, NOW + 2 * 86400)
    assert second.keys == {key_digest(ada.key.public), key_digest(bob.key.public)}


def test_nobody_has_the_authority_revoke_or_go_on_from_anothers_word() -> None:
    authority, other = Authority(clock=FakeClock()), Authority(clock=FakeClock())
    with expect_problem(BAD_SIGNATURE):
        revoke(authority.key, [other.party("ada", "client").credential], None, now=NOW, days=1)
    with expect_problem(BAD_SIGNATURE):
        revoke(authority.key, [], revoke(other.key, [], None, now=NOW, days=1), now=NOW, days=1)


def test_a_list_is_as_long_as_a_message_may_be() -> None:
    authority = Authority(clock=FakeClock())
    keys = tuple(number.to_bytes(32, "big") for number in range(REVOKED_LIMIT))
    full = authority.key.sign(RevocationList(1, 0, 2**50, keys))
    assert len(Revocations.read(full, authority.key.public).keys) == REVOKED_LIMIT
    with expect_problem(TOO_LARGE):
        revoke(authority.key, [authority.party("ada", "client").credential], full, now=NOW, days=1)
