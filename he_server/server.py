"""What every handler and the worker share: the server's own things, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from he_protocol.keyfile import KeyRecord
from he_protocol.problems import ProblemType
from he_protocol.revocation import Revocations
from he_protocol.task import Task
from he_server.acceptance import Acceptance, keep_together
from he_server.aggregate import load_kernels
from he_server.blobs import Blobs
from he_server.events import Notifier
from he_server.grouped import Together
from he_server.metrics import Metrics
from he_server.pressure import Limits, Measured, Pressure, free_bytes
from he_server.replay import ReplayCache
from he_server.settings import Settings
from he_server.store import Store
from he_server.store.updates import NewUpdate

THREADS = 4
REVOCATIONS_SECONDS = 5.0
"""How late another process's revocation list may be seen."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Server:
    """The server's state in memory. `authority` is the authority's Ed25519 public key, `clock` gives Unix seconds.

    `signatures` and `bodies` check these in threads; the former never wait for the latter.
    """

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
    known_revocations: Revocations = field(default_factory=Revocations)
    revocations_due: float = 0.0
    worker: asyncio.Task[None] | None = None
    openapi: bytes = b"{}"
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    pressure: Pressure = field(init=False)
    accept: Acceptance = field(init=False)
    signatures: Together = field(init=False)
    bodies: Together = field(init=False)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()
        settings = self.settings
        limits = Limits(settings.ingest_bytes, settings.min_free_bytes, settings.max_uploads, settings.max_wait)
        self.accept = Acceptance(self.store, self.clock, self._keep)
        self.signatures, self.bodies = Together(self.thread), Together(self.thread)
        self.pressure = Pressure(limits, self.measure)

    @property
    def draining(self) -> bool:
        """Whether the server finishes what it has begun, and begins nothing."""
        return self.stopping.is_set()

    async def measure(self) -> Measured:
        """What back-pressure goes by: bytes not folded yet, and bytes free. Raises `database-unavailable`."""
        free = await asyncio.to_thread(free_bytes, self.settings.data_dir)
        waiting = await self.store.unfolded()
        sizes = {task: (await self.task(task)).part("sum").size for task in waiting}
        return Measured(sum(count * sizes[task] for task, count in waiting.items()), free)

    async def retains(self) -> bool:
        """Whether updates stay on the disk after they were added up, so that they can be taken out again."""
        taken = await self.store.taken()
        held = sum([count * (await self.task(task)).part("sum").size for task, count in taken.items()])
        free = (await self.pressure.load()).free
        return held <= self.settings.retain_bytes and free >= 2 * self.settings.min_free_bytes

    async def task(self, task_id: str) -> Task:
        """A task by its hash in hex; the first time it is verified again, and what its uploads need is loaded.

        Raises `not-found`.
        """
        found = self.tasks.get(task_id)
        if found is None:
            record = await self.store.task(task_id)
            found = Task.from_token(record.token, self.authority)
            await self.thread(load_kernels, found)
            self.tasks[task_id] = found
        return found

    async def revocations(self) -> Revocations:
        """The authority's newest list that this server has. Raises `database-unavailable`."""
        now = self.clock()
        if now >= self.revocations_due:
            self.revocations_due = now + REVOCATIONS_SECONDS  # whoever asks meanwhile need not ask the database, too
            newer = await self.store.newer_revocations(self.known_revocations.number)
            if newer:
                found = await self.thread(Revocations.read, newer, self.authority)
                self.known_revocations = max(found, self.known_revocations, key=lambda known: known.number)
        return self.known_revocations

    async def _keep(self, offers: Sequence[NewUpdate]) -> str:
        return await self.thread(keep_together, self.blobs, offers)

    async def check_kept(self, blob: str, problem: ProblemType) -> None:
        """Raises `problem` when a blob that a row is to refer to is gone; see `Blobs.check_kept`."""
        await self.thread(self.blobs.check_kept, [blob], problem)

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
