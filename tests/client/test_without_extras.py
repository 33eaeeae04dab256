"""`pip install hushsum` and nothing more: what a device of the default scheme does, and what it is told of the rest."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from he_client.schemes.ckks import check_tenseal
from he_party.console import command
from he_protocol.privacy import accountant
from he_protocol.privacy.accountant import Release, account
from he_protocol.problems import MISSING_PACKAGE
from he_protocol.schemes.ckks import PROFILES
from he_testing.problems import expect_problem
from tests.architecture.source import IMPORTABLE
from tests.support.service import TASK, Service

EXTRAS = (
    "tenseal", "zstandard", "torch", "scipy", "dp_accounting", "sqlalchemy", "alembic", "aiosqlite", "asyncpg",
    "structlog", "prometheus_client",
)  # fmt: skip
"""Top-level modules that the extras bring. Here they are as good as absent."""
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
from he_client.cli import app
app(sys.argv[1:])
"""
UPDATE = """
import numpy as np

def update(model):
    return {name: np.full(value.shape, 0.25, dtype=np.float32) for name, value in model.items()}
"""


async def start(service: Service, number: int, *words: str | Path) -> asyncio.subprocess.Process:
    """A command of a client, in a process without the extras."""
    where = ("--server", service.url, "--data-dir", service.folder(number), "--task", TASK, "--format", "json")
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *map(str, (*words, *where)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTABLE)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


async def test_a_device_trains_under_client_level_privacy(service: Service, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UPDATE)
    if service.task.config.encryption.scheme == "ckks":
        device = await start(service, 1, "train", f"{tmp_path / 'mine.py'}:update")
        _, said = await device.communicate()
        assert device.returncode == 2
        assert "hushsum[ckks]" in said.decode()
        assert "Traceback" not in said.decode()
        return
    async with service.committee():
        devices = [await start(service, number, "train", f"{tmp_path / 'mine.py'}:update") for number in (1, 2)]
        for device in devices:
            shown, said = await device.communicate()
            assert device.returncode == 0, said.decode()
            (row,) = json.loads(shown)
            assert row["model_version"] == 1
            assert row["accountant"] == "gaussian"


def test_a_task_that_samples_records_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A looser bound in its place would make devices, holders and authority disagree about the same plan."""
    accountant._account.cache_clear()
    for name in ("dp_accounting", "dp_accounting.pld", "dp_accounting.pld.pld_pmf"):
        monkeypatch.setitem(sys.modules, name, None)
    with expect_problem(MISSING_PACKAGE, "hushsum[accounting]"):
        account([Release(1.0, 0.01, 100)], 1e-5)
    assert account([Release(1.0, 1.0, 100)], 1e-5).method == "gaussian"


def test_scheme_ckks_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with expect_problem(MISSING_PACKAGE, "hushsum[ckks]"):
        check_tenseal(PROFILES["ckks-8192"])


@pytest.mark.parametrize(
    ("program", "words", "extra"),
    [
        ("he_server.cli.main", ("status", "--data-dir", "there"), "server"),
        ("he_holder.cli.main", ("status", "--data-dir", "there"), "holder"),
    ],
)
def test_other_programs_name_their_extra(program: str, words: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    code = PROGRAM.replace("he_client.cli", program)
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTABLE)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"hushsum[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_a_users_function_lacks_is_not_ours_to_name() -> None:
    @command
    def ours() -> None:
        exec(compile("import nothing_of_ours", "theirs.py", "exec"), {"__name__": "theirs"})

    with pytest.raises(ModuleNotFoundError):
        ours()
