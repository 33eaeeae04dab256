"""A whole deployment on one machine: authority, server process, key-holder processes, client identities.

Identities are made in this process, as the `init` and `enroll` commands make them; everything that runs is a process
of its own, started by the commands that an operator would use.
"""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config
from he_client.client import HushSumClient
from he_holder.keyring import Keyring, new_holder
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, create
from he_party.http_transport import RetryPolicy
from he_party.identity import Identity
from he_party.keyfile import KeyRecord, write_private
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.identity.jws import SigningKey, jwk_x, public_from_jwk
from he_protocol.messages import Role
from he_protocol.task import Task
from he_protocol.tensors import model_digest
from he_testing.parties import Parties

Model = Mapping[str, npt.NDArray[np.float32]]
VALID_DAYS = 7
SECONDS = 300.0
"""The longest that anything may take on a loaded machine: on an overloaded one, a program took 60 s to start."""
RETRY = RetryPolicy(first=0.05, longest=0.2, give_up=SECONDS)
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("HUSHSUM_")}
AUTHORITY, SERVER, TASK_FILE, MODEL_FILE = "authority", "server", "task.jws", "initial.safetensors"


def client_name(number: int) -> str:
    """The name, and the folder, of a client, counted from 1."""
    return f"client-{number:02}"


def holder_name(number: int) -> str:
    """The name, and the folder, of a key holder, counted from 1."""
    return f"holder-{number}"


def provision(
    root: Path, plan: Mapping[str, Any], model: Model, *, clients: int, holders: int, days: float = VALID_DAYS
) -> Task:
    """Fill `root`: a folder with key and credential for everybody, the signed task, the initial model.

    days: how long the credentials are valid.
    """
    authority = SigningKey.generate()
    _write_key(root / AUTHORITY / "authority.key", AUTHORITY, authority)
    for number in range(1, clients + 1):
        _enroll(root / client_name(number), "client", authority, days)
    committee = [_enroll(root / holder_name(number), "holder", authority, days) for number in range(1, holders + 1)]
    server = _enroll(root / SERVER, "server", authority, days)
    (root / SERVER / KEY_FILE).rename(root / SERVER / "server.key")
    spec = ModelSpec(tuple(TensorSpec(name, value.shape) for name, value in model.items()), model_digest(model))
    token = authority.sign(build_config(plan, spec, server, committee, authority.public))
    _write_task(root, token, model)
    return Task.from_token(token, authority.public)


def settle(root: Path, parties: Parties, task: Task, model: Model) -> None:
    """Fill `root` as `provision` does, with parties that were made in memory; clients stay there."""
    _write_key(root / AUTHORITY / "authority.key", AUTHORITY, parties.authority.key)
    for number, (holder, hpke) in enumerate(zip(parties.committee, parties.hpke, strict=True), 1):
        folder = root / holder_name(number)
        _write_key(folder / KEY_FILE, holder.name, holder.key)
        _write_credential(folder, holder.credential, holder.authority)
        Keyring.of(folder).add(hpke)
    _write_key(root / SERVER / "server.key", parties.server.name, parties.server.key)
    _write_credential(root / SERVER, parties.server.credential, parties.server.authority)
    _write_task(root, task.token, model)


def _enroll(folder: Path, role: Role, authority: SigningKey, days: float) -> str:
    """A party's folder; its credential."""
    now = time.time()
    name = folder.name
    request = new_holder(folder, name, now) if role == "holder" else create(folder, name, role, now)
    credential = issue_credential(authority, request, role, now=now, days=days)
    _write_credential(folder, credential, authority.public)
    return credential


def _write_key(file: Path, name: str, key: SigningKey) -> None:
    write_private(file, KeyRecord(name, key.public, key.private))


def _write_credential(folder: Path, credential: str, authority: bytes) -> None:
    (folder / CREDENTIAL_FILE).write_text(credential)
    (folder / AUTHORITY_FILE).write_text(jwk_x(authority))


def _write_task(root: Path, token: str, model: Model) -> None:
    (root / TASK_FILE).write_text(token)
    save_file(dict(model), root / MODEL_FILE)


class ProvisionedDeployment:
    """Server and key holders of the task in a folder that `provision` has filled, now or long ago.

    Every process logs to `<name>.log` under `root`. environment: beside this process's own, without what is HushSum's.
    tls: a folder with ca.pem, server.pem and server-key.pem. port: 0 takes a free one at the first start.

    All methods block: in asynchronous code, `await asyncio.to_thread(deployment.start)`.
    """

    def __init__(
        self,
        root: Path,
        *,
        environment: Mapping[str, str] | None = None,
        tls: Path | None = None,
        port: int = 0,
        poll_seconds: float = 0.1,
    ) -> None:
        self.root = root
        self.tls = tls
        authority = public_from_jwk((root / SERVER / AUTHORITY_FILE).read_text())
        self.task = Task.from_token((root / TASK_FILE).read_text(), authority)
        self.holders = [holder_name(number) for number in range(1, len(self.task.config.committee.holders) + 1)]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.start_seconds = 0.0
        """How long the server took to start, the last time that it was waited for."""
        self._environment = CLEAN | dict(environment or {})
        self._port = port
        self._poll_seconds = poll_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The server's."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """The first start of everything: task, server, key ceremony, key holders."""
        self.add_task()
        self.start_server()
        self.join()
        self.heal()

    def add_task(self) -> None:
        """The server's database gets the task and its first model."""
        task, model = self.root / TASK_FILE, self.root / MODEL_FILE
        self.command("he-server", "task", "add", task, "--model", model, "--data-dir", self.root / SERVER)

    def join(self) -> None:
        """Every holder joins the newest epoch; with a ceremony they do it together."""
        about = (self.task.config.name, "--server", self.url, *self._ca, "--data-dir")
        joining = {
            name: self._spawn(f"join-{name}", "he-holder", "join", *about, self.root / name) for name in self.holders
        }
        for name, process in joining.items():
            self._finish(f"join-{name}", process)

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
            self.spawn(
                name, "he-holder", "run", "--data-dir", data, "--poll-seconds", str(self._poll_seconds), *self._ca
            )

    def listen(self, name: str, program: str, *arguments: str | Path) -> str:
        """Start a program that takes `--port-file` as the process `name`; its URL, once it is ready."""
        file = self.root / f"{name}.port"
        file.unlink(missing_ok=True)
        self.spawn(name, program, *arguments, "--port-file", file)
        self._until(file.exists, name)
        return f"http://127.0.0.1:{file.read_text().strip()}"

    @property
    def _port_file(self) -> Path:
        return self.root / f"{SERVER}.port"

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
        """Whether this process runs."""
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
        """End everything, by force what does not end when it is asked to."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        """What a process has said."""
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, number: int, tls: ssl.SSLContext | None = None) -> HushSumClient:
        """The client with this number, counted from 1."""
        state = self.folder(number) / "state"
        return HushSumClient(self.url, self.identity(number), state_dir=state, tls=tls, retry=RETRY)

    def identity(self, number: int) -> Identity:
        """Of the client with this number."""
        return Identity.load(self.folder(number))

    def folder(self, number: int) -> Path:
        """The data directory of the client with this number."""
        return self.root / client_name(number)

    @property
    def _ca(self) -> list[str | Path]:
        return ["--tls-ca", self.tls / "ca.pem"] if self.tls else []

    def spawn(self, name: str, program: str, *arguments: str | Path) -> None:
        """Start a program of this environment as the process `name`."""
        self.running[name] = self._spawn(name, program, *arguments)

    def _spawn(self, name: str, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)  # noqa: S603

    def _finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.wait(SECONDS):
            raise RuntimeError(f"{name} failed: {self.log(name)}")

    def _until(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            if self.running[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {self.log(name)}")
            time.sleep(0.02)


class LocalDeployment(ProvisionedDeployment):
    """A deployment in an empty folder. plan: what `he-authority task sign` takes.

    >>> with LocalDeployment(root, plan, model) as deployment:
    ...     deployment.start()
    ...     client = deployment.client(1)
    """

    def __init__(
        self,
        root: Path,
        plan: Mapping[str, Any],
        model: Model,
        *,
        clients: int = 4,
        holders: int = 4,
        environment: Mapping[str, str] | None = None,
        tls: Path | None = None,
        port: int = 0,
        poll_seconds: float = 0.1,
    ) -> None:
        provision(root, plan, model, clients=clients, holders=holders)
        super().__init__(root, environment=environment, tls=tls, port=port, poll_seconds=poll_seconds)
