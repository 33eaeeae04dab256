"""What every handler and the worker share: the server's own things, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from he_party.keyfile import KeyRecord
from he_protocol.documents import Waiting
from he_protocol.errors import ProblemError
from he_protocol.identity.revocation import Revocations
from he_protocol.problems import BAD_SETTINGS, ProblemType
from he_protocol.task import Task
from he_server.blobs.local import Blobs
from he_server.blobs.vectors import load_kernels, sum_layout
from he_server.rules.admission import Limits, Measured
from he_server.services.backpressure import AdmissionController, free_bytes
from he_server.services.commit_updates import UpdateCommitter, write_shared_blobs
from he_server.services.door import Door, Places
from he_server.services.group_commit import ThreadBatcher
from he_server.services.metrics import Metrics
from he_server.services.notifier import Notifier
from he_server.services.replay import ReplayCache
from he_server.services.seldom import Seldom
from he_server.services.strangers import Bodies, Turnstile
from he_server.services.streams import Event, Streams
from he_server.settings import Settings
from he_server.store import Store
from he_server.store.engine import make_engine
from he_server.store.updates import NewUpdate


def open_server(settings: Settings, clock: Callable[[], float] = time.time) -> ServerContext:
    """Everything that an application needs, from its settings; nothing is served yet.

    Raises `bad-settings`, `bad-key-file` or `disk-full`.
    """
    key = settings.read_key()
    authority = settings.read_authority()
    blobs = Blobs(settings.data_dir / "blobs")
    try:
        blobs.prepare()
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"data_dir cannot be used: {error}") from None
    return ServerContext(settings, Store(make_engine(settings.url)), blobs, key, authority, clock)


THREADS = 4
REVOCATIONS_SECONDS = 5.0
"""How late another process's revocation list may be seen."""

PROBE_SECONDS, METRICS_SECONDS = 1.0, 0.2
"""How old the last look at the disk, and the metrics, may be."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class ServerContext:
    """The server's state in memory. `authority` is the authority's Ed25519 public key, `clock` gives Unix seconds.

    `signatures` and `bodies` batch these checks in threads, `unproved` those of strangers; none waits for another.
    """

    settings: Settings
    store: Store
    blobs: Blobs
    key: KeyRecord = field(repr=False)
    authority: bytes
    clock: Callable[[], float]
    metrics: Metrics = field(default_factory=Metrics)
    notifier: Notifier = field(default_factory=Notifier)
    said: Notifier = field(default_factory=Notifier)
    replays: ReplayCache = field(default_factory=ReplayCache)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "hushsum"))
    tasks: dict[str, Task] = field(default_factory=dict)
    known_revocations: Revocations = field(default_factory=Revocations)
    revocations_due: float = 0.0
    worker: asyncio.Task[None] | None = None
    openapi: bytes = b"{}"
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    due: asyncio.Event = field(default_factory=asyncio.Event)
    admission: AdmissionController = field(init=False)
    accept: UpdateCommitter = field(init=False)
    signatures: ThreadBatcher = field(init=False)
    bodies: ThreadBatcher = field(init=False)
    unproved: ThreadBatcher = field(init=False)
    door: Door = field(init=False)
    turnstile: Turnstile = field(init=False)
    stranger_bodies: Bodies = field(default_factory=Bodies)
    streams: Streams[tuple[Event, ...]] = field(init=False)
    waiting: Streams[dict[str, tuple[Waiting, ...]]] = field(init=False)
    adding: set[str] = field(default_factory=set)
    probe: Seldom[None] = field(init=False)
    exposition: Seldom[bytes] = field(init=False)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()
        settings = self.settings
        limits = Limits(
            settings.ingest_bytes,
            settings.min_free_bytes,
            settings.max_uploads,
            settings.max_uploads_per_client,
            settings.max_wait,
        )
        self.accept = UpdateCommitter(self.store, self.clock, self._write_blobs)
        self.signatures, self.bodies, self.unproved = (ThreadBatcher(self.thread) for _ in range(3))
        self.admission = AdmissionController(limits, self.measure)
        places = (settings.max_connections, settings.max_connections_per_address, settings.max_connections_per_party)
        self.door = Door(Places(*places))
        self.probe = Seldom(lambda: self.thread(self.blobs.probe), PROBE_SECONDS)
        self.exposition = Seldom(self._expose, METRICS_SECONDS)
        self.turnstile = Turnstile(settings.stranger_rate)
        streams = (settings.max_streams, settings.max_streams_per_party)
        self.streams = Streams(*streams, self.notifier, self._rounds)
        self.waiting = Streams(*streams, self.said, self._waiting, pause=0.0)

    @property
    def draining(self) -> bool:
        """Whether the server finishes requests in flight and starts no new ones."""
        return self.stopping.is_set()

    def heard(self, task_id: str) -> None:
        """A key holder answered or a round changed: wake key holders and the worker."""
        self.notifier.notify(task_id)
        self.said.notify(task_id)
        self.due.set()

    async def measure(self) -> Measured:
        """Inputs of admission: bytes not folded yet, and bytes free. Raises `database-unavailable`."""
        free = await asyncio.to_thread(free_bytes, self.settings.data_dir)
        waiting = await self.store.status.unfolded()
        sizes = {task: (await self.task(task)).section("sum").size for task in waiting}
        return Measured(sum(count * sizes[task] for task, count in waiting.items()), free)

    async def _rounds(self, task_id: str) -> tuple[Event, ...]:
        """A task's newest rounds, newest first."""
        found = await self.store.answers.statuses(await self.task(task_id), await self.store.rounds.recent(task_id))
        return tuple(Event.of(status) for status in found)

    async def _waiting(self, task_id: str) -> dict[str, tuple[Waiting, ...]]:
        """What waits for each of a task's key holders."""
        return await self.store.answers.waiting(await self.task(task_id))

    async def retains(self) -> bool:
        """Whether updates stay on the disk after they were added up, so that they can be taken out again."""
        taken = await self.store.status.taken()
        held = sum([count * (await self.task(task)).section("sum").size for task, count in taken.items()])
        free = (await self.admission.load()).free
        return held <= self.settings.retain_bytes and free >= 2 * self.settings.min_free_bytes

    async def _expose(self) -> bytes:
        """The metrics; also while the database is down, when they matter most."""
        metrics, now = self.metrics, self.clock()
        try:
            seq, _ = await self.store.audit.head()
            load, status = await self.admission.load(), await self.store.status.summary(now)
            metrics.show(load, status, now, seq, (await self.revocations()).valid_until)
            metrics.database_up.set(1)
        except ProblemError:
            metrics.database_up.set(0)
        return metrics.render()

    async def task(self, task_id: str) -> Task:
        """A task by its hash in hex; the first time it is verified again, and what its uploads need is loaded.

        Raises `not-found`.
        """
        found = self.tasks.get(task_id)
        if found is None:
            record = await self.store.tasks.get(task_id)
            found = Task.from_token(record.token, self.authority)
            await self.thread(load_kernels, sum_layout(found))
            self.tasks[task_id] = found
        return found

    async def revocations(self) -> Revocations:
        """The authority's newest list that this server has. Raises `database-unavailable`."""
        now = self.clock()
        if now >= self.revocations_due:
            self.revocations_due = now + REVOCATIONS_SECONDS  # concurrent callers need not query the database, too
            newer = await self.store.revocations.newer(self.known_revocations.number)
            if newer:
                found = await self.thread(Revocations.read, newer, self.authority)
                self.known_revocations = max(found, self.known_revocations, key=lambda known: known.number)
        return self.known_revocations

    async def _write_blobs(self, offers: Sequence[NewUpdate]) -> str:
        return await self.thread(write_shared_blobs, self.blobs, offers)

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
