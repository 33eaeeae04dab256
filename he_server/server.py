"""What every handler and the worker share: the server's own things, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from he_protocol.keyfile import KeyRecord
from he_protocol.task import Task
from he_server.blobs import Blobs
from he_server.events import Notifier
from he_server.metrics import Metrics
from he_server.replay import ReplayCache
from he_server.settings import Settings
from he_server.store import Store

THREADS = 4

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Server:
    """The server's state in memory. `authority` is the authority's Ed25519 public key, `clock` gives Unix seconds."""

    settings: Settings
    store: Store
    blobs: Blobs
    key: KeyRecord = field(repr=False)
    authority: bytes
    clock: Callable[[], float]
    metrics: Metrics = field(default_factory=Metrics)
    notifier: Notifier = field(default_factory=Notifier)
    replays: ReplayCache = field(default_factory=ReplayCache)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "hushsum"))
    tasks: dict[str, Task] = field(default_factory=dict)
    worker: asyncio.Task[None] | None = None
    openapi: bytes = b"{}"
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    async def task(self, task_id: str) -> Task:
        """A task by its hash in hex, verified again the first time. Raises `not-found`."""
        found = self.tasks.get(task_id)
        if found is None:
            record = await self.store.task(task_id)
            found = self.tasks[task_id] = Task.from_token(record.token, self.authority)
        return found

    def enter(self) -> None:
        """A request begins."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request is answered."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def working(self) -> bool:
        """Whether the worker lives, where this process has one."""
        return self.worker is None or not self.worker.done()

    async def thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that blocks or computes in the bounded pool."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))
