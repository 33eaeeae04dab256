"""`he-server doctor`: a healthy server, and every ailment with its advice."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from he_party.kernels import Warmed
from he_server.blobs.local import LocalBlobs
from he_server.cli import doctor
from he_server.cli.doctor import CHECKS, Finding, examine
from he_server.cli.main import app
from he_server.settings import Settings
from he_server.store.engine import make_engine
from tests.support.revocations import revoked

from .conftest import both
from .world import World


async def _found(settings: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in await examine(settings)}


async def _execute(settings: Settings, *commands: str) -> None:
    engine = make_engine(settings.database)
    async with engine.begin() as connection:
        for command in commands:
            await connection.execute(text(command))
    await engine.dispose()


@both
async def test_a_healthy_server(world: World) -> None:
    await world.fill(1)
    found = await _found(world.server.settings)
    assert found.keys() == CHECKS.keys()
    assert {name for name, finding in found.items() if finding.level == "wrong"} == set()
    assert found["audit"].found.startswith("1 entries, head ")


async def test_files(world: World) -> None:
    settings = world.server.settings
    (settings.data_dir / "server.key").chmod(0o644)
    assert (await _found(settings))["keys"].level == "wrong"
    (settings.data_dir / "server.key").unlink()
    finding = (await _found(settings))["keys"]
    assert (finding.level, "he-server init" in finding.advice) == ("wrong", True)


@pytest.mark.parametrize(("days", "level"), [(30, "ok"), (6, "warning"), (-1, "wrong")])
async def test_a_revocation_list_is_renewed_in_time(world: World, days: int, level: str) -> None:
    known = revoked(world.authority, now=time.time(), seconds=days * 86400)
    await world.server.store.revocations.learn(known, time.time())
    assert (await _found(world.server.settings))["revocations"].level == level


async def test_settings(world: World) -> None:
    finding = (await _found(world.server.settings.model_copy(update={"host": "0.0.0.0"})))["settings"]
    assert (finding.level, "TLS" in finding.found) == ("warning", True)


async def test_the_database(world: World) -> None:
    settings = world.server.settings
    gone = await _found(settings.model_copy(update={"database_url": "postgresql+asyncpg://nobody@127.0.0.1:1/none"}))
    assert {name for name, finding in gone.items() if finding.level == "wrong"} >= {"database", "clock", "rounds"}
    for name in ("database", "revocations", "rounds", "audit"):
        assert "is it running" in gone[name].advice  # and not: somebody changed it
        assert "127.0.0.1" in gone[name].found
    await _execute(settings, "UPDATE alembic_version SET version_num = '0001'")
    finding = (await _found(settings))["database"]
    assert (finding.level, "he-server migrate" in finding.advice) == ("wrong", True)


async def test_the_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world.server.settings
    assert (await _found(settings.model_copy(update={"min_free_bytes": 1 << 60})))["space"].level == "wrong"
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "SLOW_SYNC_SECONDS", 0.0)
        assert (await _found(settings))["blobs"].level == "warning"

    def broken(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        assert (await _found(settings))["blobs"].level == "wrong"


async def test_orphans(world: World) -> None:
    blobs = LocalBlobs(world.server.settings.data_dir / "blobs")
    blobs.put("updates/left", b"x")
    assert (await _found(world.server.settings))["orphans"].level == "ok"  # young: it may get its row yet
    old = time.time() - 2 * doctor.ORPHAN_SECONDS
    os.utime(world.server.settings.data_dir / "blobs" / "updates" / "left", (old, old))
    finding = (await _found(world.server.settings))["orphans"]
    assert (finding.level, "updates/left" in finding.found) == ("warning", True)


@pytest.mark.parametrize(
    "change",
    ["UPDATE rounds SET deadline = 1.0", "UPDATE rounds SET lease_token = 'dead', lease_until = 1.0"],
)
async def test_rounds_that_nobody_works_on(world: World, change: str) -> None:
    assert (await _found(world.server.settings))["rounds"].level == "ok"
    await _execute(world.server.settings, change)
    assert (await _found(world.server.settings))["rounds"].level == "wrong"


async def test_a_changed_audit_log(world: World) -> None:
    await _execute(world.server.settings, "UPDATE audit SET detail = '{}'")
    finding = (await _found(world.server.settings))["audit"]
    assert (finding.level, "[audit-broken]" in finding.found) == ("wrong", True)


async def test_cold_kernels_and_a_wrong_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "warm", lambda steps: Warmed(0, 3, 2.5))
    monkeypatch.setattr(doctor, "SKEW_SECONDS", -1.0)
    found = await _found(world.server.settings)
    assert (found["kernels"].level, found["clock"].level) == ("warning", "wrong")


async def test_the_command(world: World, tmp_path: Path) -> None:
    settings = world.server.settings

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["doctor", "--data-dir", str(settings.data_dir), *arguments])
        return result.exit_code, result.output

    code, output = await asyncio.to_thread(run, "--format", "json")
    assert code == 0
    assert {finding.check for finding in msgspec.json.decode(output, type=list[Finding])} == CHECKS.keys()
    (settings.data_dir / "server.key").unlink()
    code, output = await asyncio.to_thread(run)
    assert (code, "wrong" in output) == (1, True)
