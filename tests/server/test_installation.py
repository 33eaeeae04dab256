"""A data directory and its database: every command finds the same one, and none works on another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from he_party.settings import SETTINGS_FILE
from he_protocol.identity.jws import SigningKey, jwk_x
from he_protocol.problems import BAD_SETTINGS
from he_server.cli.main import app
from he_server.services.installation import ID_FILE
from he_server.services.migration import migrate
from he_server.settings import Settings, load_settings
from he_server.store.address import Address
from he_testing.problems import expect_problem
from tests.support.postgres import new_database

ELSEWHERE = [
    ["migrate"],
    ["status"],
    ["task", "list"],
    ["task", "pause", "demo"],
    ["task", "close", "demo", "--yes"],
    ["audit"],
    ["abandon", "demo", "1", "--yes"],
    ["recover", "demo"],
    ["revoke", "list.jws"],
    ["task", "add", "task.jws", "--model", "model.safetensors"],
    ["serve", "--port", "0"],
]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUSHSUM_SERVER_DATABASE_URL", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The data directory of a server that is to be set up."""
    folder = tmp_path / "server"
    assert run("init", "--data-dir", folder, "--name", "aggregator", "--no-warm").exit_code == 0
    (folder / "authority.pub").write_text(jwk_x(SigningKey.generate().public))
    return folder


@pytest.mark.parametrize("words", ELSEWHERE, ids=lambda words: " ".join(words[:2]))
def test_no_command_works_on_another_database(home: Path, words: list[str]) -> None:
    """The URL was given once, in a shell of long ago. Nothing is made at the place that is meant now."""
    theirs, ours = home.parent / "theirs.db", home / "server.db"
    assert run("migrate", "--data-dir", home, "--database-url", f"sqlite:///{theirs}").exit_code == 0
    result = run(*words, "--data-dir", home)
    assert result.exit_code == 2
    assert "belongs to another database" in result.output.replace("\n", " ")
    assert str(ours) in result.output.replace("\n", "")
    assert not ours.exists()


def test_a_check_that_is_off_lets_a_task_go_to_a_database_that_nobody_reads(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unchecked(_: Settings) -> None: ...

    monkeypatch.setattr("he_server.services.migration.check_database", unchecked)
    assert run("migrate", "--data-dir", home, "--database-url", f"sqlite:///{home.parent}/theirs.db").exit_code == 0
    assert run("migrate", "--data-dir", home).exit_code == 0
    assert (home / "server.db").exists()


def test_doctor_says_so(home: Path) -> None:
    assert run("migrate", "--data-dir", home).exit_code == 0
    other = f"sqlite:///{home.parent / 'other.db'}"
    assert run("migrate", "--data-dir", home.parent, "--database-url", other).exit_code == 2  # no server lives there
    result = run("doctor", "--data-dir", home, "--database-url", other, "--format", "json")
    assert result.exit_code == 1
    assert "belongs to another database" in result.output


async def test_a_database_that_was_moved_or_restored_is_still_the_same(home: Path) -> None:
    before = load_settings(data_dir=home)
    await migrate(before)
    moved = home.parent / "moved.db"
    shutil.copy(home / "server.db", moved)
    (home / "server.db").unlink()
    await migrate(load_settings(data_dir=home, database_url=f"sqlite:///{moved}"))
    with expect_problem(BAD_SETTINGS, "belongs to another database"):
        await migrate(before)
    (home / ID_FILE).unlink()  # replaced on purpose
    await migrate(before)


@pytest.mark.postgres
def test_what_init_was_told_is_found_by_every_command(tmp_path: Path) -> None:
    home = tmp_path / "server"
    with new_database() as url:
        made = run("init", "--data-dir", home, "--name", "aggregator", "--no-warm", "--database-url", url)
        assert made.exit_code == 0, made.output
        assert (home / SETTINGS_FILE).stat().st_mode & 0o077 == 0  # a password may stand there
        (home / "authority.pub").write_text(jwk_x(SigningKey.generate().public))
        for words in (["migrate"], ["status"], ["task", "list"], ["audit", "--verify"]):
            result = run(*words, "--data-dir", home)
            assert result.exit_code == 0, result.output
        assert not (home / "server.db").exists()


def test_a_url_that_is_none_makes_no_key(tmp_path: Path) -> None:
    result = run("init", "--data-dir", tmp_path / "server", "--name", "aggregator", "--database-url", "mysql://there")
    assert result.exit_code == 2
    assert "bad-settings" in result.output
    assert not (tmp_path / "server").exists()


def test_flags_and_environment_and_files_come_before_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Settings.keep(home, {"port": 1, "host": "kept \"'\\ ü", "lease_seconds": 5.0})
    assert (load_settings(data_dir=home).port, load_settings(data_dir=home).host) == (1, "kept \"'\\ ü")
    file = home.parent / "mine.toml"
    file.write_text("port = 2\n")
    assert load_settings(file, data_dir=home).port == 2
    monkeypatch.setenv("HUSHSUM_SERVER_PORT", "3")
    assert load_settings(file, data_dir=home).port == 3
    assert load_settings(file, data_dir=home, port=4).port == 4


def test_it_does_not_send_commands_to_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Settings.keep(tmp_path / "data", {"data_dir": "elsewhere"})
    with expect_problem(BAD_SETTINGS, "names another data_dir"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db.example/fl", "PostgreSQL, host db.example, database fl"),
        ("postgresql:///fl?host=/run/postgresql&password=secret", "PostgreSQL, host /run/postgresql, database fl"),
        ("sqlite:////var/lib/a.db", "/var/lib/a.db"),
    ],
)
def test_which_one_it_is_is_shown_without_a_password(url: str, shown: str) -> None:
    assert Address.read(url).shown == shown
