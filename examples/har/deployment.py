"""A whole deployment on one machine: authority, server process, key-holder processes, client identities.

Identities are made in this process, as the `init` and `enroll` commands make them; everything that
runs is a process of its own, started by the commands that an operator would use.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors.numpy import save_file

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config
from he_holder.keyring import new_holder
from he_party.identity import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, Identity, create
from he_party.keyfile import KeyRecord, write_private
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, jwk_x
from he_protocol.messages import Role
from he_protocol.problems import UNREACHABLE
from he_protocol.tensors import model_digest

VALID_DAYS = 7
START_TRIES = 600
"""Looks for the server's port file, a tenth of a second apart."""


@dataclass
class Deployment:
    """Files under `root`; processes log to `<name>.log` there."""

    root: Path
    clients: int
    holders: int
    authority: SigningKey = field(default_factory=SigningKey.generate)
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    url: str = ""

    @property
    def holder_names(self) -> list[str]:
        return [f"holder-{number}" for number in range(1, self.holders + 1)]

    def provision(self, plan: dict[str, Any], model: dict[str, npt.NDArray[Any]]) -> None:
        """Keys and credentials for everybody, the signed task, the initial model."""
        write_private(
            self.root / "authority" / "authority.key",
            KeyRecord("authority", self.authority.public, self.authority.private),
        )
        for number in range(1, self.clients + 1):
            self._enroll(f"phone-{number:02}", "client")
        for name in self.holder_names:
            self._enroll(name, "holder")
        self._enroll("server", "server")
        (self.root / "server" / KEY_FILE).rename(self.root / "server" / "server.key")
        tensors = tuple(TensorSpec(name, value.shape) for name, value in model.items())
        server, *holders = (self._credential(name) for name in ("server", *self.holder_names))
        config = build_config(plan, ModelSpec(tensors, model_digest(model)), server, holders, self.authority.public)
        (self.root / "task.jws").write_text(self.authority.sign(config))
        save_file(model, self.root / "initial.safetensors")

    def identity(self, number: int) -> Identity:
        """The identity of phone `number`, counted from 1."""
        return Identity.load(self.root / f"phone-{number:02}")

    async def start(self, task: str) -> None:
        """Start the server, run the key ceremony, start the key holders."""
        data = str(self.root / "server")
        await self._finish(
            "he-server",
            "task",
            "add",
            str(self.root / "task.jws"),
            "--model",
            str(self.root / "initial.safetensors"),
            "--data-dir",
            data,
        )
        port_file = self.root / "server" / "port"
        port_file.unlink(missing_ok=True)
        await self._spawn(
            "server", "he-server", "serve", "--data-dir", data, "--port", "0", "--port-file", str(port_file)
        )
        await self._until_ready(port_file)
        self.url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        await asyncio.gather(
            *(
                self._finish("he-holder", "join", task, "--server", self.url, "--data-dir", str(self.root / name))
                for name in self.holder_names
            )
        )
        for name in self.holder_names:
            await self.start_holder(name)

    async def start_holder(self, name: str) -> None:
        """Start one key holder's `he-holder run`."""
        await self._spawn(name, "he-holder", "run", "--data-dir", str(self.root / name), "--poll-seconds", "0.25")

    async def kill(self, name: str) -> None:
        """Kill a process without a warning."""
        process = self.processes.pop(name)
        process.kill()
        await process.wait()

    async def stop(self) -> None:
        """Ask every process to end, and wait for it."""
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in self.processes.values()))

    def _enroll(self, name: str, role: Role) -> None:
        folder = self.root / name
        now = time.time()
        request = new_holder(folder, name, now) if role == "holder" else create(folder, name, role, now)
        credential = issue_credential(self.authority, request, role, now=time.time(), days=VALID_DAYS)
        (folder / CREDENTIAL_FILE).write_text(credential)
        (folder / AUTHORITY_FILE).write_text(jwk_x(self.authority.public))

    def _credential(self, name: str) -> str:
        return (self.root / name / CREDENTIAL_FILE).read_text()

    async def _spawn(self, name: str, program: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name(program)), *arguments, stdout=log, stderr=log
            )

    async def _finish(self, program: str, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(program)),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise ProblemError(
                UNREACHABLE, f"{program} {arguments[0]} failed: {output.decode(errors='replace').strip()}"
            )

    async def _until_ready(self, port_file: Path) -> None:
        for _ in range(START_TRIES):
            if port_file.exists() and port_file.read_text().strip():  # noqa: ASYNC240 - a stat of a local file
                return
            if self.processes["server"].returncode is not None:
                break
            await asyncio.sleep(0.1)
        raise ProblemError(UNREACHABLE, f"the server did not start; see {self.root / 'server.log'}")
