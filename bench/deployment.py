"""Real processes for one world: a server, and its key holders, started by the commands that an operator uses."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench.world import TASK_NAME, World
from he_client.identity import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, Identity
from he_protocol.keyfile import KeyRecord, write_private
from he_protocol.problems import UNREACHABLE, Refusal
from he_protocol.signing import jwk_x

START_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass
class Deployment:
    """Files under `root`; every process logs to `<name>.log` there."""

    root: Path
    world: World
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start_server(self) -> str:
        """Start `he-server serve` with the world's task; returns its URL."""
        data, parties = self.root / "server", self.world.parties
        await asyncio.to_thread(_write_party, data, parties.server, "server.key", b"")
        (self.root / "task.jws").write_text(self.world.task.token)
        zeros = {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in self.world.task.config.tensors}
        await asyncio.to_thread(save_file, zeros, self.root / "initial.safetensors")
        model = str(self.root / "initial.safetensors")
        await self._finish(
            "he-server", "task", "add", str(self.root / "task.jws"), "--model", model, "--data-dir", data
        )
        return await self.listen("he-server", "serve", "--data-dir", data, "--port", "0")

    async def start_holders(self, url: str) -> None:
        """Let every key holder join the task (with its ceremony, if the scheme has one) and then serve it."""
        parties = self.world.parties
        homes = [self.root / holder.name for holder in parties.holders]
        for home, holder, hpke in zip(homes, parties.holders, parties.hpke, strict=True):
            await asyncio.to_thread(_write_party, home, holder, KEY_FILE, hpke.private)
        joining = (self._finish("he-keys", "keygen", TASK_NAME, "--server", url, "--data-dir", home) for home in homes)
        await asyncio.gather(*joining)
        for home in homes:
            await self._spawn("he-keys", "run", "--data-dir", home, "--poll-seconds", str(POLL_SECONDS))

    async def listen(self, program: str, *arguments: str | Path) -> str:
        """Start a program that takes `--port-file`, and wait for its URL."""
        port_file = self.root / f"{program}.port"
        process = await self._spawn(program, *arguments, "--port-file", port_file)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not port_file.exists():
                    if process.returncode is not None:
                        raise TimeoutError
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            log = (self.root / f"{program}.log").read_text()
            raise Refusal(UNREACHABLE, f"{program} did not start: {log.strip()}") from None
        return f"http://127.0.0.1:{port_file.read_text().strip()}"

    def server_pids(self) -> list[int]:
        """The process that was started first: the server."""
        return [self.processes[0].pid]

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

    async def _finish(self, program: str, *arguments: str | Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *_command(program, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise Refusal(UNREACHABLE, f"{program} {arguments[0]} failed: {output.decode(errors='replace').strip()}")


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
    if program.startswith("bench."):
        return [sys.executable, "-m", program, *map(str, arguments)]
    return [str(Path(sys.executable).with_name(program)), *map(str, arguments)]


def _write_party(folder: Path, identity: Identity, key_file: str, hpke: bytes) -> None:
    record = KeyRecord(identity.name, identity.key.public, identity.key.private, hpke)
    write_private(folder / key_file, record)
    (folder / CREDENTIAL_FILE).write_text(identity.credential)
    (folder / AUTHORITY_FILE).write_text(jwk_x(identity.authority))
