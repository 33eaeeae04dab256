"""A project file and its kits: one command prepares a party, and makes its key where it stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from he_authority.cli import app
from he_authority.provision import Project
from he_client.cli import app as client
from he_client.settings import ClientSettings
from he_holder.cli.main import app as holder
from he_holder.settings import Settings as HolderSettings
from he_party.enrolling import AUTHORITY_FILE
from he_party.identity import Identity
from he_party.kit import Kit
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import EnrollRequest
from he_protocol.problems import BAD_PLAN, BAD_SETTINGS
from he_server.cli.main import app as server
from he_testing.problems import expect_problem

PROJECT = """
task = "keyboard"
url = "https://hub.example"
server = "hub"
holders = ["bank-a", "bank-b"]
clients = ["phone-1", "Klinik München"]
tls_ca = "ca.pem"
"""
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def run(program: object, *words: str | Path) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])  # type: ignore[arg-type]


@pytest.fixture
def kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kits of the project."""
    monkeypatch.chdir(tmp_path)
    Path("project.toml").write_text(PROJECT)
    Path("ca.pem").write_text(PEM)
    assert run(app, "init").exit_code == 0
    made = run(app, "provision", "project.toml", "--out", "kits")
    assert made.exit_code == 0, made.output
    return Path("kits")


def test_everybody_gets_a_kit_that_others_cannot_read(kits: Path) -> None:
    assert {path.name for path in kits.iterdir()} == {
        "hub.kit",
        "bank-a.kit",
        "bank-b.kit",
        "phone-1.kit",
        "klinik-munchen.kit",
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in (kits, *kits.iterdir()))
    parties = Project.read(Path("project.toml")).parties
    assert len({Kit.read(kits / f"{name}.kit", role).invitation for name, _, role in parties}) == 5


def test_a_kit_prepares_a_party_that_is_then_enrolled(kits: Path) -> None:
    for program, name, role in (
        (server, "hub", "server"),
        (holder, "bank-a", "holder"),
        (client, "phone-1", "client"),
        (client, "klinik-munchen", "client"),
    ):
        made = run(program, "init", kits / f"{name}.kit", "--data-dir", name)
        assert made.exit_code == 0, made.output
        enrolled = run(
            app, "enroll", f"{name}/enroll-request.jws", "--role", role, "--invited", "--out", f"{name}/credential.jws"
        )
        assert enrolled.exit_code == 0, enrolled.output
        assert Path(name, AUTHORITY_FILE).read_text() == Path("authority", AUTHORITY_FILE).read_text()
    phone = ClientSettings.load(data_dir=Path("phone-1"))
    assert (phone.server, phone.task) == ("https://hub.example", "keyboard")
    assert (phone.tls_ca or Path()).read_text().strip() == PEM.strip()
    assert (HolderSettings.load(data_dir=Path("bank-a")).tls_ca or Path()).read_text().strip() == PEM.strip()
    assert Identity.load(Path("phone-1")).name == "phone-1"


def test_a_kit_makes_no_second_party(kits: Path) -> None:
    """Whoever has a copy of it comes too late, and is noticed."""
    for folder in ("first", "second"):
        assert run(client, "init", kits / "phone-1.kit", "--data-dir", folder).exit_code == 0
    words = ["--role", "client", "--invited", "--out", "x.jws"]
    assert run(app, "enroll", "first/enroll-request.jws", *words).exit_code == 0
    refused = run(app, "enroll", "second/enroll-request.jws", *words)
    assert (refused.exit_code, "name-taken" in refused.output) == (2, True)


def test_a_kit_is_for_its_party_only(kits: Path) -> None:
    code = Kit.read(kits / "phone-1.kit", "client").invitation
    assert run(client, "init", "--name", "phone-2", "--invitation", code, "--data-dir", "other").exit_code == 0
    refused = run(app, "enroll", "other/enroll-request.jws", "--role", "client", "--out", "x.jws")
    assert (refused.exit_code, "bad-invitation" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("kits/bank-a.kit",), "another program"),
        (("kits/phone-1.kit", "--name", "phone-2"), "leave these options out"),
        (("kits/phone-1.kit", "--invitation", "abc"), "leave these options out"),
        (("project.toml",), "no kit"),
        (("kits",), "cannot read"),
        ((), "a kit of the authority"),
    ],
    ids=" ".join,
)
def test_what_is_no_kit_for_this_party(kits: Path, words: tuple[str, ...], why: str) -> None:
    refused = run(client, "init", *words, "--data-dir", "new")
    assert (refused.exit_code, BAD_SETTINGS.slug in refused.stderr) == (2, True)
    assert why in " ".join(refused.stderr.split())
    assert not Path("new").exists()


def test_what_is_said_beside_a_kit_counts(kits: Path) -> None:
    words = ["--server", "https://other.example", "--task", "other", "--min-clients", "50"]
    assert run(client, "init", kits / "phone-1.kit", "--data-dir", "phone", *words).exit_code == 0
    phone = ClientSettings.load(data_dir=Path("phone"))
    assert (phone.server, phone.task, phone.floor_min_clients) == ("https://other.example", "other", 50)


def test_kits_replace_no_others(kits: Path) -> None:
    again = run(app, "provision", "project.toml", "--out", "kits")
    assert (again.exit_code, "there already" in again.output) == (2, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('task = "keyboard"', ""),
        ('server = "hub"', 'server = "--"'),
        ('server = "hub"', 'server = "bank-a"'),
        ('["bank-a", "bank-b"]', '["bank-a", "bank-a"]'),
        ('["bank-a", "bank-b"]', '"bank-a"'),
        ("clients", "phones"),
        ("task", "= task"),
    ],
)
def test_a_project_that_cannot_be_meant(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "project.toml"
    file.write_text(PROJECT.replace(old, new, 1))
    with expect_problem(BAD_PLAN, "project.toml"):
        Project.read(file)


def test_a_certificate_that_is_missing_is_named(tmp_path: Path, kits: Path) -> None:
    Path("ca.pem").unlink()
    refused = run(app, "provision", "project.toml", "--out", "others")
    assert (refused.exit_code, "ca.pem" in refused.output) == (2, True)
    assert not Path("others").exists()


def test_a_request_from_a_kit_carries_no_secret_of_it(kits: Path) -> None:
    assert run(client, "init", kits / "phone-1.kit", "--data-dir", "phone").exit_code == 0
    request = Path("phone/enroll-request.jws").read_text().strip()
    assert Kit.read(kits / "phone-1.kit", "client").invitation not in request
    assert read_unverified(request, EnrollRequest).invitation
