"""A folder that is not the party's own: one line that says what was expected there, and nothing is made."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner, Result

from he_holder.ledger import Ledger
from he_party.http_transport import RetryPolicy
from tests.fuzz.command_lines import PROGRAMS, lay_out

COMMANDS = {
    "he-server": [
        ["serve"], ["doctor"], ["audit"], ["migrate"], ["status"], ["task", "list"], ["revoke", "revoked.jws"],
        ["task", "add", "task.jws", "--model", "initial.safetensors"],
        ["abandon", "ab", "1", "--yes"], ["recover", "ab"],
    ],
    "he-holder": [
        ["run"], ["status"], ["ledger"], ["rotate"], ["backup", "new"], ["destroy-epoch", "demo", "--yes"],
        ["join", "demo", "--server", "http://127.0.0.1:1"],
    ],
    "he-client": [
        ["status", "--task", "demo"], ["model", "--task", "demo", "--out", "new"], ["enroll-request"],
        ["train", "json:loads", "--task", "demo"],
        ["submit", "initial.safetensors", "--base-version", "0", "--task", "demo"],
    ],
    "he-authority": [
        ["enroll", "client/enroll-request.jws", "--role", "client", "--out", "new"], ["revoke", "--out", "new"],
    ],
}  # fmt: skip
OWN = {"he-server": "data", "he-holder": "holder", "he-client": "client", "he-authority": "authority"}
WRONG = ["none", "none/below", "folder", "file", "file/below", "a?b", "client", "holder", "data", "authority"]
CASES = [
    (program, words, folder)
    for program, lines in COMMANDS.items()
    for words in lines
    for folder in WRONG
    if folder != OWN[program] and (words != ["enroll-request"] or folder not in OWN.values())
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    for name in [name for name in os.environ if name.startswith("HUSHSUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("he_party.http_transport.RetryPolicy", lambda: RetryPolicy(give_up=0.0))
    return tmp_path / "files"


def run(program: str, *words: str) -> Result:
    try:
        return CliRunner().invoke(import_module(PROGRAMS[program]).app, list(words))
    finally:
        structlog.reset_defaults()


def seen(root: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for path in root.rglob("*") if not path.is_symlink()]
    return {str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mode) for path in paths}


def test_nothing_is_made_in_a_folder_that_is_not_the_partys(here: Path) -> None:
    (here / "a?b").mkdir()
    before = seen(here)
    for program, words, folder in CASES:
        option = "--authority-dir" if program == "he-authority" else "--data-dir"
        result = run(program, *words, option, folder)
        said = (program, words, folder, result.output, result.exception)
        assert result.exit_code == 2, said
        assert len(result.stderr.splitlines()) == 1, said
        assert folder in result.stderr, said
        assert seen(here) == before, said


@pytest.mark.parametrize("url", ["sqlite:///none.db", "sqlite:///none/a.db"])
def test_only_a_migration_makes_a_database(here: Path, url: str) -> None:
    before = seen(here)
    for words in (["audit"], ["status"], ["task", "list"], ["abandon", "ab", "1", "--yes"], ["recover", "ab"]):
        result = run("he-server", *words, "--data-dir", "data", "--database-url", url)
        assert (result.exit_code, "he-server migrate" in result.stderr) == (2, True), (words, result.output)
        assert seen(here) == before, words


@pytest.mark.parametrize("names", [("a?b", "a?c"), ("a#b", "a#c"), ("a%20b", "a b"), ("100%", "100%%")])
def test_two_holders_never_share_a_ledger(tmp_path: Path, names: tuple[str, str]) -> None:
    """Their folders' names are alike up to a character that means something in a URL."""

    async def named(folder: Path) -> bytes:
        ledger = await Ledger.open(folder / "ledger.db")
        await ledger.close()
        return ledger.name

    first, second = (asyncio.run(named(tmp_path / name)) for name in names)
    assert first != second
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name / "ledger.db").is_file() for name in names)
