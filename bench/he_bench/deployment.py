"""Real processes for one world: a server and its key holders, by the commands that an operator uses."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from he_bench.world import World
from he_holder.ceremony.run import Ceremony
from he_holder.holder import KeyHolder
from he_holder.hpke_key import HpkeKey
from he_holder.ledger import Ledger
from he_party.board import ServerBoard
from he_party.http_transport import HttpTransport
from he_party.identity import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, Identity
from he_party.keyfile import KeyRecord, write_private
from he_protocol import frames, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import jwk_x
from he_protocol.problems import UNREACHABLE

START_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass
class Deployment:
    """Files under `root`; every process logs to `<name>.log` there."""

    root: Path
    world: World
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    servers: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        """Where the server keeps blobs, and SQLite its files."""
        return self.root / "server"

    async def start_server(self) -> str:
        """Start `he-server serve` and give it the world's task; returns its URL."""
        return (await self.start_servers(1))[0]

    async def start_servers(self, count: int, database_url: str = "") -> list[str]:
        """The same with several processes that share a database (SQLite where none is given) and a data directory."""
        data, task = self.data_dir, self.world.task
        await asyncio.to_thread(_write_party, data, self.world.parties.server, "server.key")
        flags = ("--data-dir", data, "--port", "0", *(("--database-url", database_url) if database_url else ()))
        urls = []
        for _ in range(count):
            urls.append(await self.listen("he-server", "serve", *flags))
            self.servers.append(self.processes[-1])
        zeros = {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in task.config.model.tensors}
        async with HttpTransport(urls[0], self.world.parties.server) as transport:
            await transport.request("POST", paths.TASKS, pieces=[frames.start(task.token.encode()), save(zeros)])
        return urls

    async def start_holders(self, url: str) -> None:
        """Let every key holder join the task, then start its `he-holder run`."""
        parties = self.world.parties
        homes = [self.root / holder.name for holder in parties.committee]
        members = list(zip(homes, parties.committee, parties.hpke, strict=True))
        await asyncio.gather(*(self._join(url, *member) for member in members))
        for home, _, _ in members:
            await self._spawn("he-holder", "run", "--data-dir", home, "--poll-seconds", str(POLL_SECONDS))

    async def _join(self, url: str, home: Path, identity: Identity, hpke: HpkeKey) -> None:
        """What `he-holder join` does, the ceremony included where the scheme has one."""
        await asyncio.to_thread(_write_party, home, identity, KEY_FILE)
        task, ledger = self.world.task, await Ledger.open(home / "ledger.db")
        try:
            holder = KeyHolder(identity, ledger, home)
            holder.keyring.add(hpke)
            await holder.join(task, url)
            if task.scheme.ceremony:
                async with HttpTransport(url, identity) as transport:
                    await Ceremony(holder, task, ServerBoard(transport, task), patience=START_SECONDS).run()
        finally:
            await ledger.close()

    async def listen(self, program: str, *arguments: str | Path) -> str:
        """Start a program that takes `--port-file`, and wait for its URL."""
        port_file = self.root / f"{program}-{len(self.processes)}.port"
        process = await self._spawn(program, *arguments, "--port-file", port_file)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not port_file.exists():
                    if process.returncode is not None:
                        raise TimeoutError
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            log = (self.root / f"{program}.log").read_text()
            raise ProblemError(UNREACHABLE, f"{program} did not start: {log.strip()}") from None
        return f"http://127.0.0.1:{port_file.read_text().strip()}"

    def server_pids(self) -> list[int]:
        """Of the server's processes."""
        return [server.pid for server in self.servers]

    async def stop(self) -> None:
        """Ask every process to end, and wait for it."""
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in self.processes))

    async def _spawn(self, program: str, *arguments: str | Path) -> asyncio.subprocess.Process:
        with (self.root / f"{program}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*_command(program, arguments), stdout=log, stderr=log)
        self.processes.append(process)
        return process


@asynccontextmanager
async def deployed(root: Path, world: World) -> AsyncIterator[Deployment]:
    """A deployment whose processes end with the block."""
    deployment = Deployment(root, world)
    try:
        yield deployment
    finally:
        await deployment.stop()


def _command(program: str, arguments: Sequence[str | Path]) -> list[str]:
    """A console script of this interpreter's environment, or a module of this package."""
    if program.startswith("he_bench."):
        return [sys.executable, "-m", program, *map(str, arguments)]
    return [str(Path(sys.executable).with_name(program)), *map(str, arguments)]


def _write_party(folder: Path, identity: Identity, key_file: str) -> None:
    record = KeyRecord(identity.name, identity.key.public, identity.key.private)
    write_private(folder / key_file, record)
    (folder / CREDENTIAL_FILE).write_text(identity.credential)
    (folder / AUTHORITY_FILE).write_text(jwk_x(identity.authority))
