"""A server that was restored from an older backup, by the commands of docs/operations.md."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from he_protocol.errors import ProblemError
from he_testing.deployment import SECONDS
from tests.integration.processes import CLIENTS, Processes, Round
from tests.support.schemes import SCHEMES

pytestmark = pytest.mark.long  # tests/server/test_manifests.py and the simulation recover without processes


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Processes]:
    """A deployment of its own: its holders remember what its server forgets."""
    processes = Processes(tmp_path / "world", *SCHEMES[-1])
    try:
        processes.start()
        yield processes
    finally:
        processes.stop()


def back_up(server: Path, to: Path) -> None:
    """While the server runs: the database first, then the blobs."""
    to.mkdir()
    with closing(sqlite3.connect(server / "server.db")) as live, closing(sqlite3.connect(to / "server.db")) as copy:
        live.backup(copy)
    shutil.copytree(server / "blobs", to / "blobs")


def restore(server: Path, backup: Path) -> None:
    """The blobs, then the database; nothing that is newer stays."""
    shutil.rmtree(server / "blobs")
    for file in server.glob("server.db*"):
        file.unlink()
    shutil.copytree(backup / "blobs", server / "blobs")
    shutil.copy(backup / "server.db", server)


def status(processes: Processes) -> dict[str, Any]:
    """The one task, as `he-server status` shows it."""
    where = ["--data-dir", str(processes.root / "server"), "--format", "json"]
    command = [str(Path(sys.executable).with_name("he-server")), "status", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    (task,) = json.loads(done.stdout)
    return dict(task)


async def refusals(processes: Processes, number: int) -> dict[str, str]:
    """What holders refuse a round with, once all but those that may be away have refused; it is not published."""
    wanted = processes.task.committee.agreement
    async with asyncio.timeout(SECONDS):
        while True:
            (round_,) = (r for r in (await asyncio.to_thread(status, processes))["rounds"] if r["round"] == number)
            assert round_["state"] in {"open", "closed"}
            found = {one["holder"]: one["problem"] for one in round_["committee"] if one.get("problem")}
            if len(found) >= wanted:
                return found
            await asyncio.sleep(0.5)


async def test_rounds_go_on_after_an_older_backup_once_the_server_is_told(fresh: Processes, tmp_path: Path) -> None:
    """Two rounds are lost. Holders that voted for them refuse the old model, and say so, until `he-server recover`."""
    server, backup = fresh.root / "server", tmp_path / "backup"
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(fresh.client(number)) for number in range(1, CLIENTS + 1)]
        assert await Round(fresh, clients, seed=40).publish() == 1
        back_up(server, backup)
        for seed, version in ((41, 2), (42, 3)):
            assert await Round(fresh, clients, seed=seed).publish() == version
        assert fresh.terminate("server") == 0
        restore(server, backup)
        fresh.command("he-server", "doctor", "--data-dir", server)
        fresh.start_server()

        stuck = Round(fresh, clients, seed=43)
        await stuck.submit()
        found = await refusals(fresh, stuck.sent[0].round)
        assert set(found.values()) <= {"stale-update", "number-used"}
        assert status(fresh)["model_version"] == 1

        fresh.command("he-server", "recover", fresh.task.id, "--data-dir", server)
        # Nobody votes for these again, whatever became of them.
        for client, sent in zip(clients, stuck.sent, strict=True):
            with pytest.raises(ProblemError):
                await client.wait(fresh.task, sent, within=SECONDS)
        recovered = (await clients[0].pull_model(fresh.task)).version
        assert recovered == 4  # 3 was published, and is lost
        for seed, version in ((44, recovered + 1), (45, recovered + 2)):
            assert await Round(fresh, clients, seed=seed).publish() == version
