"""A deployment of real processes, started by the commands that an operator types."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.har.deployment import Deployment
from he_client import HushSumClient, Identity, Submission
from he_party.transport import RetryPolicy
from he_protocol.task import Task
from tests.client.schemes import assert_opens_to
from tests.support.plans import tables

CLIENTS, HOLDERS, THRESHOLD, AGREEMENT = 4, 4, 2, 3
TASK = "test-task"
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, dtype=np.float32)}
COLLECT_SECONDS = 8
"""Longer than a server takes to start again on a loaded machine."""
OPENING_SECONDS = 15
"""Longer than a key holder takes to start again on a loaded machine."""
SECONDS = 300.0
"""The longest that anything may take on a loaded machine: on an overloaded one, a program took 60 s to start."""
RETRY = RetryPolicy(first=0.05, longest=0.2, give_up=SECONDS)
QUIET = {name: value for name, value in os.environ.items() if not name.startswith("HUSHSUM_")}


def plan(scheme: str, profile: str) -> dict[str, Any]:
    """Rounds of four clients, closed with three at the deadline."""
    return {
        "name": TASK,
        "scheme": scheme,
        "profile": profile,
        "epoch": 1,
        "value_range": 4.0,
        "scale": 1024.0,
        "privacy": {"unit": "none"},
        "min_clients": 3,
        "max_clients": CLIENTS,
        "collect_seconds": COLLECT_SECONDS,
        "opening_seconds": OPENING_SECONDS,
        "staleness": 2,
        "max_openings": 30,
        "threshold": THRESHOLD,
        "agreement": AGREEMENT,
    }


class Processes:
    """Server and key holders of one task. Every process logs to `<name>.log` under `root`.

    changes: fields of the plan that differ from `plan`. port: 0 takes a free one at the first start.
    `start_seconds`: how long the server took to start, the last time that it was waited for.
    """

    def __init__(
        self,
        root: Path,
        scheme: str,
        profile: str,
        environment: Mapping[str, str] | None = None,
        tls: Path | None = None,
        *,
        clients: int = CLIENTS,
        changes: Mapping[str, Any] | None = None,
        model: Mapping[str, npt.NDArray[np.float32]] = MODEL,
        port: int = 0,
    ) -> None:
        self.root = root
        self.tls = tls
        self._environment = QUIET | {"HUSHSUM_SERVER_LEASE_SECONDS": "1"} | dict(environment or {})
        self._parties = Deployment(root, clients, HOLDERS)
        self._parties.provision(tables(plan(scheme, profile) | dict(changes or {})), dict(model))
        self.task = Task.from_token((root / "task.jws").read_text(), self._parties.authority.public)
        self.holders = self._parties.holder_names
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.start_seconds = 0.0
        self._port = port

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """The first start of everything: task, server, key ceremony, key holders."""
        self.add_task()
        self.start_server()
        self.keygen()
        self.heal()

    def add_task(self) -> None:
        """The server's database gets the task and its first model."""
        model = self.root / "initial.safetensors"
        add = self._spawn(
            "add",
            "he-server",
            "task",
            "add",
            self.root / "task.jws",
            "--model",
            model,
            "--data-dir",
            self.root / "server",
        )
        self._finish("add", add)

    def keygen(self) -> None:
        """Every holder joins the newest epoch; with a ceremony they do it together."""
        makers = {
            name: self._spawn(
                f"keygen-{name}",
                "he-holder",
                "join",
                TASK,
                "--server",
                self.url,
                "--data-dir",
                self.root / name,
                *self._ca,
            )
            for name in self.holders
        }
        for name, maker in makers.items():
            self._finish(f"keygen-{name}", maker)

    def command(self, program: str, *arguments: str | Path) -> None:
        """One command that ends by itself, and well."""
        self._finish("command", self._spawn("command", program, *arguments))

    def start_server(self) -> None:
        """On the same port and data as before; returns once it is ready."""
        launched = time.monotonic()
        self.launch("server")
        self._until(lambda: self.server_ready, "server")
        self.start_seconds = time.monotonic() - launched
        self._port = int(self._port_file.read_text())

    @property
    def server_ready(self) -> bool:
        """Whether the server that was launched last has said that it listens."""
        return self._port_file.exists()

    def launch(self, name: str, folder: str = "") -> None:
        """Start the server or a key holder (on another one's folder, if asked), and do not wait for it."""
        if name == "server":
            self._port_file.unlink(missing_ok=True)
            flags: list[str | Path] = ["--port", str(self._port), "--port-file", self._port_file]
            if self.tls is not None:
                flags += ["--tls-cert", self.tls / "server.pem", "--tls-key", self.tls / "server-key.pem"]
            self.spawn(name, "he-server", "serve", "--data-dir", self.root / "server", *flags)
        else:
            data = self.root / (folder or name)
            self.spawn(name, "he-holder", "run", "--data-dir", data, "--poll-seconds", "0.1", *self._ca)

    @property
    def _port_file(self) -> Path:
        return self.root / "server" / "port"

    def start_holder(self, name: str, as_name: str = "") -> None:
        """`he-holder run`; returns once it watches its task."""
        self._start_holders({as_name or name: name})

    def heal(self) -> None:
        """Whatever should run and does not is started."""
        if not self.lives("server"):
            self.start_server()
        self._start_holders({name: name for name in self.holders if not self.lives(name)})

    def _start_holders(self, folders: Mapping[str, str]) -> None:
        before = {label: self.log(label).count("watching") for label in folders}
        for label, folder in folders.items():
            self.launch(label, folder)
        for label, count in before.items():
            self._until(lambda label=label, count=count: self.log(label).count("watching") > count, label)  # type: ignore[misc]

    def lives(self, name: str) -> bool:
        return name in self.running and self.running[name].poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        process = self.running.pop(name)
        process.kill()
        process.wait(SECONDS)

    def terminate(self, name: str) -> int:
        """SIGTERM; the exit code."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(SECONDS)

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Processes that exist and do nothing."""
        for name in names:
            self.running[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for name in names:
                self.running[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, number: int, tls: ssl.SSLContext | None = None) -> HushSumClient:
        """The client with this number, counted from 1."""
        state = self.folder(number) / "state"
        return HushSumClient(self.url, self.identity(number), state_dir=state, tls=tls, retry=RETRY)

    def identity(self, number: int) -> Identity:
        return self._parties.identity(number)

    def folder(self, number: int) -> Path:
        return self.root / f"phone-{number:02}"

    @property
    def _ca(self) -> list[str | Path]:
        return ["--tls-ca", self.tls / "ca.pem"] if self.tls else []

    def spawn(self, name: str, program: str, *arguments: str | Path) -> None:
        """Start a program of this environment as the process `name`."""
        self.running[name] = self._spawn(name, program, *arguments)

    def _spawn(self, name: str, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def _finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(SECONDS) == 0, self.log(name)

    def _until(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.02)


class Round:
    """Updates with known integers, and the one sum that may come of them."""

    def __init__(self, processes: Processes, clients: list[HushSumClient], *, seed: int) -> None:
        self.task = processes.task
        self.clients = clients
        generator = np.random.default_rng(seed)
        self.integers = [generator.integers(-4000, 4000, self.task.length) for _ in clients]
        self.sent: list[Submission] = []

    async def submit(self, *, until: int | None = None) -> None:
        """The next clients' updates, acknowledged: all, or those before number `until`."""
        first = len(self.sent)
        model = await self.clients[0].pull_model(self.task)
        self.sent += await asyncio.gather(
            *(self._submit(at, model.version) for at in range(first, len(self.clients) if until is None else until))
        )

    async def _submit(self, at: int, version: int) -> Submission:
        client, vector = self.clients[at], self.integers[at]
        sealed = await client.encrypt(self.task, lambda start, stop: vector[start:stop], base_version=version)
        return await client.upload(self.task, sealed)

    async def wait(self) -> int:
        """The published version, the same for all; the opened sum is that of the integers."""
        versions = await asyncio.gather(
            *(
                client.wait(self.task, sent, within=SECONDS)
                for client, sent in zip(self.clients, self.sent, strict=False)
            )
        )
        assert len(set(versions)) == 1
        assert len({sent.round for sent in self.sent}) == 1
        opened = await self.clients[0].opened_sum(self.task, self.sent[0].round)
        assert_opens_to(self.task.config.encryption.scheme, opened, self.integers[: len(self.sent)])
        return versions[0]

    async def publish(self) -> int:
        await self.submit()
        return await self.wait()
