"""The programs under fire: a server, four key holders and five clients, on SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import numpy as np

from he_client import Identity
from he_holder.holder import KeyHolder
from he_holder.ledger import Ledger
from he_party.http_transport import HttpTransport
from he_party.transport import Transport
from he_protocol import documents, paths
from he_testing.deployment import RETRY
from tests.crash import submitter
from tests.integration.processes import TASK, Processes

SCHEME = ("kahe", "kahe-30")
CLIENTS = 5
PARAMETERS = 1 << 13
SCALE = 1 << 16
"""Far above the scheme's error: a one in a sum is a one."""
PLAN = {
    "value_range": 1.0,
    "scale": float(SCALE),
    "min_clients": 3,
    "max_clients": 4,
    "collect_seconds": 2,
    "opening_seconds": 10,
    "staleness": 1 << 20,
    "max_openings": 1 << 20,
}
ENVIRONMENT = {"HUSHSUM_SERVER_LEASE_SECONDS": "1", "HUSHSUM_SERVER_POLL_SECONDS": "0.05"}
PORTS = range(20_000, 30_000)
"""Below the range of outgoing connections, one of which could take the port while the server is dead."""
HEAL_SECONDS = 900.0
"""The longest that everything may take to come to rest once nothing is killed any more: far longer than a slow
machine takes, for only what is stuck may reach it."""
LOG_LINES = 40
WENT_WELL = '"status": 2'
SWEPT_AGE_SECONDS = 86_400.0
"""Bytes without a row are left alone until they are older than some hours."""
KEPT = ("models", "board")
"""Folders of blobs that outlive rounds."""


class World:
    """Start, kill and heal. `database_url` is empty for SQLite; every process logs under `root`."""

    def __init__(self, root: Path, database_url: str) -> None:
        self.database_url = database_url
        self._blobs = root / "server" / "blobs"
        self.processes = Processes(
            root,
            *SCHEME,
            ENVIRONMENT | ({"HUSHSUM_SERVER_DATABASE_URL": database_url} if database_url else {}),
            clients=CLIENTS,
            changes=PLAN,
            model={submitter.TENSOR: np.zeros(PARAMETERS, dtype=np.float32)},
            port=free_port(),
        )
        self.clients = tuple(f"client-{number}" for number in range(1, CLIENTS + 1))

    def start(self) -> None:
        """Everything up, kernels compiled, the first round published."""
        self.processes.add_task()
        self.processes.start_server()
        asyncio.run(self._join())
        for name in (*self.processes.holders, *self.clients):
            self.launch(name)
        try:
            self._until(lambda rounds: any(round_.state == "published" for round_ in rounds))
        except TimeoutError:
            raise AssertionError(f"no round was published: {self.logs()}") from None

    def launch(self, name: str) -> None:
        """Start one process, and do not wait for it."""
        if name not in self.clients:
            self.processes.launch(name)
            return
        number = self.clients.index(name)
        program, folder = Path(submitter.__file__), self.processes.folder(number + 1)
        where = (self.processes.url, folder, TASK, str(number), str(CLIENTS))
        self.processes.spawn(name, "python", program, *where)

    def kill(self, names: Collection[str]) -> None:
        """SIGKILL to all of them at the same moment."""
        for name in names:
            self.processes.running[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes.kill(name)

    def exited(self) -> dict[str, int]:
        """Processes that ended by themselves, and their exit codes; they are forgotten."""
        codes = {name: code for name, process in self.processes.running.items() if (code := process.poll()) is not None}
        for name in codes:
            del self.processes.running[name]
        return codes

    def cut_connections(self) -> None:
        """The database ends every connection of the server."""
        asyncio.run(_terminate_backends(self.database_url))

    def heal(self) -> list[tuple[str, int]]:
        """Let everything come to rest: clients end with nothing unsent, rounds end, a sweep takes place.

        Returns once it has, or after HEAL_SECONDS: what is not at rest by then, the account finds. Processes
        that failed by themselves are returned, with their exit codes.
        """
        for number in range(1, CLIENTS + 1):
            (self.processes.folder(number) / submitter.STOP).touch()
        deadline = time.monotonic() + HEAL_SECONDS
        failed = []
        waiting = set(self.clients)
        while waiting and time.monotonic() < deadline:
            ended = self.exited()
            failed += [(name, code) for name, code in ended.items() if code]
            waiting -= {name for name, code in ended.items() if not code}
            for name in {"server", *self.processes.holders, *waiting} - self.processes.running.keys():
                self.launch(name)
            time.sleep(0.05)
        with suppress(TimeoutError):
            self._until(at_rest, deadline - time.monotonic())
        if code := self.processes.terminate("server"):
            failed.append(("server", code))
        self._sweep(deadline)
        return failed

    def stop(self) -> None:
        """Everything ends at once."""
        self.kill(tuple(self.processes.running))

    def logs(self) -> dict[str, str]:
        """The last lines of everybody's log, without the many requests that went well."""
        names = ("server", *self.processes.holders, *self.clients)
        lines = {name: [x for x in self.processes.log(name).splitlines() if WENT_WELL not in x] for name in names}
        return {name: "\n".join(found[-LOG_LINES:]) for name, found in lines.items()}

    def leftovers(self) -> list[str]:
        """Blobs that belong to rounds, and unfinished ones."""
        files = (path.relative_to(self._blobs) for path in self._blobs.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] not in KEPT)

    async def _join(self) -> None:
        """What `he-holder join` does for a scheme without a ceremony, in this process: three programs fewer."""
        for name in self.processes.holders:
            folder = self.processes.root / name
            ledger = await Ledger.open(folder / "ledger.db")
            await KeyHolder(Identity.load(folder), ledger, folder).join(self.processes.task, self.processes.url)
            await ledger.close()

    def _sweep(self, deadline: float) -> None:
        """Start the server, which sweeps as it starts, after making all bytes look old."""
        then = time.time() - SWEPT_AGE_SECONDS
        for path in self._blobs.rglob("*"):
            os.utime(path, (then, then))
        self.processes.start_server()
        while self.leftovers() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _until(self, ready: Callable[[list[documents.RoundStatus]], bool], within: float = HEAL_SECONDS) -> None:
        task = self.processes.task

        async def look() -> None:
            async with (
                asyncio.timeout(within),
                HttpTransport(self.processes.url, self.processes.identity(1), retry=RETRY) as transport,
            ):
                while not ready(await recent_rounds(transport, task.config.server.name, task.id)):
                    await asyncio.sleep(0.05)

        asyncio.run(look())


def at_rest(rounds: list[documents.RoundStatus]) -> bool:
    """Whether all rounds have ended but one that is open and empty."""
    live = [round_ for round_ in rounds if round_.state not in {"published", "failed"}]
    return [(round_.state, round_.updates) for round_ in live] == [("open", 0)]


async def recent_rounds(transport: Transport, server: str, task: str) -> list[documents.RoundStatus]:
    """The newest rounds of a task, newest first."""
    return await transport.document(
        "GET", f"{paths.task_path(task)}/rounds", list[documents.RoundStatus], audience=server
    )


def free_port() -> int:
    """A port of PORTS on which nobody listens."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


async def _terminate_backends(url: str) -> None:
    connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://"))
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()
