"""A real server with its worker over HTTP, and real key holders, all in this process."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from aiohttp.test_utils import TestServer

from he_client import HushSumClient, Identity
from he_holder.agent import Agent
from he_holder.ceremony.run import Ceremony
from he_holder.holder import KeyHolder
from he_holder.ledger import Ledger
from he_migrations.run import upgrade
from he_party.board import ServerBoard
from he_party.http_transport import HttpTransport, RetryPolicy
from he_protocol.task import Task
from he_server.blobs.tensor_file import keep_model
from he_server.http.app import make_app
from he_server.services.context import open_server
from he_server.settings import Settings
from he_testing.deployment import Model, client_name, provision
from he_testing.plans import plan

CLIENTS, HOLDERS = 3, 4
TASK = "client-test"
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, dtype=np.float32)}
QUICK = RetryPolicy(first=0.01, longest=0.02, give_up=20.0)


PLAN: dict[str, Any] = {
    "name": TASK,
    "privacy": {"unit": "client", "clip_norm": 2.0, "noise_multiplier": 1.0, "delta": 1e-5, "epsilon_budget": 100.0},
    "min_clients": 2,
    "max_clients": 2,
    "staleness": 1,
    "max_openings": 20,
}
"""Two clients make a round; client-level privacy, so that epsilon is finite."""


class Clock:
    """Unix seconds that a test can push forward for everybody at once."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Service:
    """One server with one task. `root` has a folder for every party: see `he_testing.deployment.provision`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.settings = Settings(data_dir=root / "server", poll_seconds=0.01, drain_seconds=2.0)
        authority = self.settings.read_authority()
        self.task = Task.from_token((root / "task.jws").read_text(), authority)

    @classmethod
    async def provision(
        cls, root: Path, scheme: str, profile: str, clients: int = CLIENTS, *, model: Model = MODEL, **changes: Any
    ) -> None:
        """Fill `root`: identities, the task in the server's database, the committee's keys. `changes` to the plan."""
        wanted = PLAN | {"scheme": scheme, "profile": profile} | changes
        provision(root, plan(**wanted), model, clients=clients, holders=HOLDERS)
        service = cls(root)
        await upgrade("server", service.settings.database.url)
        server = open_server(service.settings)
        sha256 = keep_model(server.blobs, service.task, (root / "initial.safetensors").read_bytes())
        await server.store.tasks.add(service.task, sha256, time.time())
        await server.store.close()
        async with service, AsyncExitStack() as stack:
            holders = [await stack.enter_async_context(service.holder(n)) for n in range(1, HOLDERS + 1)]
            await asyncio.gather(*(service._join(holder) for holder in holders))

    async def __aenter__(self) -> Self:
        self.server = open_server(self.settings, self.clock)
        self._http = TestServer(make_app(self.server))
        await self._http.start_server()
        self.url = str(self._http.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    def folder(self, number: int) -> Path:
        """A client's data directory, counted from 1."""
        return self.root / client_name(number)

    def identity(self, number: int) -> Identity:
        return Identity.load(self.folder(number))

    @asynccontextmanager
    async def client(
        self, number: int, url: str | None = None, *, retry: RetryPolicy = QUICK, ahead: float = 0.0
    ) -> AsyncIterator[HushSumClient]:
        """A client, perhaps through a proxy; entering it again is a restart of the device.

        ahead: seconds that its clock is before everybody else's.
        """
        state = self.folder(number) / "state"
        async with HushSumClient(
            url or self.url, self.identity(number), state_dir=state, retry=retry, clock=lambda: self.clock() + ahead
        ) as client:
            yield client

    @asynccontextmanager
    async def holder(self, number: int) -> AsyncIterator[KeyHolder]:
        folder = self.root / f"holder-{number}"
        ledger = await Ledger.open(folder / "ledger.db")
        try:
            yield KeyHolder(Identity.load(folder), ledger, folder, clock=self.clock)
        finally:
            await ledger.close()

    @asynccontextmanager
    async def committee(self, numbers: Sequence[int] = range(1, HOLDERS + 1)) -> AsyncIterator[None]:
        """Key holders at work; by default all."""
        async with AsyncExitStack() as stack:
            holders = [await stack.enter_async_context(self.holder(n)) for n in numbers]
            runs = [asyncio.create_task(Agent(h, self.task, self.url, poll_seconds=0.02).run()) for h in holders]
            try:
                yield
            finally:
                for run in runs:
                    run.cancel()
                await asyncio.gather(*runs, return_exceptions=True)

    async def _join(self, holder: KeyHolder) -> None:
        async with HttpTransport(self.url, holder.identity, retry=QUICK) as transport:
            await holder.join(self.task, self.url)
            if self.task.scheme.ceremony:
                await Ceremony(holder, self.task, ServerBoard(transport, self.task)).run()


def copy(template: Path, target: Path) -> Path:
    """A provisioned tree of one's own; key files keep their modes."""
    shutil.copytree(template, target)
    return target
