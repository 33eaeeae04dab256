"""People write their names as they are; messages, addresses and files carry a safe one beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from he_authority.cli import app as authority
from he_authority.enrollment import issue_credential
from he_client.cli import app as client
from he_holder.cli.main import app as holder
from he_holder.keyring import rotate
from he_party.names import check_display, safe_name, split_name
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import Credential, EnrollRequest
from he_protocol.problems import BAD_SETTINGS, MALFORMED
from he_server.cli.main import app as server
from he_testing.problems import expect_problem

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("written", "safe"),
    [
        ("Klinik München", "klinik-munchen"),
        ("Straße 7", "strasse-7"),
        ("Ålesund/Øst", "alesund-ost"),
        ("北京医院", "beijingyiyuan"),
        ("Больница № 1", "bol-nitsa-no-1"),
        ("Bank of A & B, Ltd.", "bank-of-a-b-ltd"),
        ("../../etc/passwd", "etc-passwd"),
        ("PHONE_1", "phone_1"),
        ("phone-1", "phone-1"),
        ("a..b", "a..b"),
    ],
)
def test_a_name_becomes_a_safe_one(written: str, safe: str) -> None:
    assert split_name(written) == (safe, "" if safe == written else written)
    assert safe_name(safe) == safe


@pytest.mark.parametrize("written", ["", " ", "-", "...", "a\nb", "a\x00b", " a", "a\u202eb", "A\u200bb", "x" * 65])
def test_what_can_be_no_name_is_refused(written: str) -> None:
    with expect_problem(BAD_SETTINGS):
        safe_name(written)


@pytest.mark.parametrize(
    "shown", ["a\nb", "a\x1b[31mb", "gro\u202eß", "u\u0308", " a", "a ", "\u200b", "a\u2028b", "x" * 129]
)
def test_a_display_name_hides_nothing_from_the_authority(shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever enrolls reads it on a terminal; a request that turned the line around would show another name."""
    key = SigningKey.generate()
    request = key.sign(EnrollRequest("phone", "client", key.public, NOW, display=shown))

    def enroll() -> str:
        return issue_credential(SigningKey.generate(), request, "client", now=NOW, days=1)

    with expect_problem(MALFORMED):
        enroll()
    if len(shown) <= 128:
        monkeypatch.setattr("he_authority.enrollment.check_display", lambda written: None)
        assert read_unverified(enroll(), Credential).display == shown


def test_an_empty_display_name_is_none() -> None:
    check_display("")


@pytest.mark.parametrize(("program", "role"), [(client, "client"), (holder, "holder"), (server, "server")])
def test_both_names_are_kept_and_shown(
    program: object, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(app: object, *words: str) -> str:
        done = CliRunner().invoke(app, words)  # type: ignore[arg-type]
        assert done.exit_code == 0, done.output
        return done.output

    monkeypatch.chdir(tmp_path)
    run(authority, "init")
    assert "'klinik-munchen' (Klinik München)" in run(program, "init", "--name", "Klinik München", "--data-dir", "own")
    words = ("enroll", "own/enroll-request.jws", "--role", role, "--out", "own/credential.jws")
    assert "'klinik-munchen' (Klinik München)" in run(authority, *words)
    credential = read_unverified(Path("own/credential.jws").read_text().strip(), Credential)
    assert (credential.sub, credential.display) == ("klinik-munchen", "Klinik München")
    assert '"display":"Klinik München"' in run(authority, "list", "--format", "json")
    if role == "holder":
        Path("own/authority.pub").write_bytes(Path("authority/authority.pub").read_bytes())
        assert read_unverified(rotate(Path("own"), NOW), EnrollRequest).display == "Klinik München"
