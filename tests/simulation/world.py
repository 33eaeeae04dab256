"""A server, three key holders, four devices and an authority, each on a machine of its own.

Every device contributes one-hot vectors: value 1 at a coordinate that no other update has. What a
round publishes therefore says which updates are in it, and how often.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from he_client import HushSumClient, Identity
from he_client.client import RESUMABLE_ABOVE, Submission
from he_client.schemes import Source
from he_client.spool import SealedUpdate, Spool
from he_client.transport import RetryPolicy, Transport
from he_protocol import api, schemes
from he_protocol.keyfile import KeyRecord
from he_protocol.messages import Receipt, SignedUpdate, decode, encode
from he_protocol.problems import Refusal
from he_protocol.schemes import kahe
from he_protocol.signing import fingerprint, jwk_x, verify
from he_protocol.task import Task, TensorSpec
from he_server.app import make_app, open_server
from he_server.server import Server
from he_server.settings import Settings
from he_server.store.database import sqlite_url
from he_server.tensors import keep_model, write_tensors
from he_server.worker import Worker
from keys.agent import Agent
from keys.authority import build_config
from keys.holder import KeyHolder
from keys.hpke_key import HpkeKey
from keys.keyring import HpkeRecord
from keys.ledger import Ledger
from migrations.run import upgrade
from tests.support.parties import Authority, zeros_digest

from .disk import Disk
from .machine import ACTIVITY, START, Activity, Crashed, Fate, Machine, VirtualLoop, enter
from .wire import Network, Watch

HOLDERS, CLIENTS, THRESHOLD, WORKERS = 3, 4, 2, 2
COORDINATES = 64
SCALE = 2.0**16
"""The scheme's error, at most 52 integer units an update, is far below one half of it."""
COLLECT, OPENING, LEASE = 60, 600, 60
BUCKETS = (2, 1)
"""Of each epoch of the task: so many epochs there are."""
EPOCHS = len(BUCKETS)
RESUMING = 0
"""The device that uploads in pieces (tus)."""
PAGE_BYTES = 1024
"""Of the databases: a schedule's rows are few, and every crash copies them."""
NAME = "simulated"
PROFILE = "kahe-simulated"
SMALL = kahe.KaheProfile(PROFILE, "kahe", 64, 1073741441, 30, 6.4, 8.0, 0.0, "none")
"""Insecure: a ring so small that a schedule takes milliseconds."""
QUICK = RetryPolicy(first=0.5, longest=1.0, give_up=3.0)
SERVER = "server"

PLAN: dict[str, Any] = {
    "name": NAME,
    "scheme": "kahe",
    "profile": PROFILE,
    "value_range": 1.0,
    "scale": SCALE,
    "privacy": {"unit": "none"},
    "min_clients": 2,
    "max_clients": CLIENTS,
    "collect_seconds": COLLECT,
    "opening_seconds": OPENING,
    "staleness": 1000,
    "max_openings": 1000,
    "threshold": THRESHOLD,
}


@dataclass(frozen=True)
class Cast:
    """The parties' keys and credentials and their machines' first disks, made once and used by all schedules."""

    authority: Authority
    server: Identity
    holders: list[Identity]
    hpke: list[HpkeKey]
    clients: list[Identity]
    tasks: list[Task]
    model: bytes
    server_files: dict[str, bytes]
    ledger: bytes

    def holder_files(self, index: int) -> dict[str, bytes]:
        """What a key holder's disk begins with: a ledger, and a key file that is not bound to it yet."""
        key = self.hpke[index]
        return {"ledger.db": self.ledger, f"hpke/{fingerprint(key.public)}.key": encode(HpkeRecord(key.private))}

    @property
    def private(self) -> list[bytes]:
        """Every long-lived secret but the server's own."""
        parties = [*self.holders, *self.clients]
        return [p.key.private for p in parties] + [key.private for key in self.hpke] + [self.authority.key.private]


@cache
def cast() -> Cast:
    """Enrols everybody, signs the epochs of the task, and migrates the databases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kahe.PROFILES, PROFILE, SMALL)
        schemes.load_scheme("kahe", PROFILE)  # from here on it is known, to whom asks for it by name
    now = START - 60
    authority = Authority()
    server = authority.party("aggregator", "server", now=now)
    hpke = [HpkeKey.generate() for _ in range(HOLDERS)]
    holders = [authority.party(f"holder-{i}", "holder", hpke=key, now=now) for i, key in enumerate(hpke)]
    clients = [authority.party(f"client-{i}", "client", now=now) for i in range(CLIENTS)]
    tensors, credentials = (TensorSpec("w", (COORDINATES,)),), [h.credential for h in holders]
    public = authority.key.public
    tasks = []
    for epoch, buckets in enumerate(BUCKETS, start=1):
        plan = PLAN | {"epoch": epoch, "buckets": buckets, "initial_model": zeros_digest(tensors)}
        config = build_config(plan, tensors, server.credential, credentials, public)
        tasks.append(Task.from_token(authority.key.sign(config), public))
    model = write_tensors({"w": np.zeros(COORDINATES, dtype=np.float32)})
    with tempfile.TemporaryDirectory(prefix="hushsum-simulation-") as folder:
        root = Path(folder)
        record = KeyRecord(server.name, server.key.public, server.key.private)
        files = {"server.key": encode(record), "authority.pub": jwk_x(public).encode()}
        home = Disk.of(files, root)
        asyncio.run(_provision(home.root, root / "ledger.db", tasks, model))
        return Cast(
            authority, server, holders, hpke, clients, tasks, model, home.files(),
            (root / "ledger.db").read_bytes(),
        )  # fmt: skip


async def _provision(home: Path, ledger: Path, tasks: list[Task], model: bytes) -> None:
    for path in (home / "server.db", ledger):
        with closing(sqlite3.connect(path)) as made:
            made.execute(f"PRAGMA page_size={PAGE_BYTES}")
            made.execute("VACUUM")  # writes the header: whoever opens it now finds its page size chosen
    await upgrade("server", sqlite_url(home / "server.db"))
    server = open_server(Settings(data_dir=home), lambda: START)
    sha256 = keep_model(server.blobs, tasks[0], model)
    await server.store.add_task(tasks[0], sha256, START)
    await server.store.close()
    opened = await Ledger.open(ledger)
    for task in tasks:
        await opened.join(task, f"http://{SERVER}", START)
    await opened.close()


@dataclass(frozen=True)
class Frame:
    """One sealed update as it travels, and the coordinate that its vector has a 1 at."""

    client: int
    task: Task
    update_id: str
    coordinate: int
    head: bytes
    body: bytes

    @property
    def client_name(self) -> str:
        return f"client-{self.client}"


@dataclass
class Record:
    """What an observer of the whole world knows."""

    frames: dict[str, Frame] = field(default_factory=dict)
    sent: dict[str, None] = field(default_factory=dict)  # what ever left a device, in order
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)  # (task, update): client
    secrets: list[bytes] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    lies: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Device(HushSumClient):
    """The product's client; the world takes notes of what it seals and of the receipts it gets."""

    def __init__(self, world: World, client: int, state: Path) -> None:
        super().__init__(
            f"http://{SERVER}",
            world.cast.clients[client],
            state_dir=state,
            retry=QUICK,
            clock=world.clock,
            resumable_above=0 if client == RESUMING else RESUMABLE_ABOVE,
        )
        self._world = world
        self._client = client

    async def seal(self, task: Task, source: Source, *, base_version: int) -> SealedUpdate:
        vector = source(0, task.length)
        self._coordinate = int(np.argmax(vector))
        self._world.record.secrets.append(vector.astype("<i8").tobytes())
        return await super().seal(task, source, base_version=base_version)

    def _spool(self, task: Task) -> Spool:
        spool = super()._spool(task)
        commit = spool.commit

        def noted(sealed: SealedUpdate, head: SignedUpdate) -> None:
            body = b"".join(path.read_bytes() for path in sealed.parts)
            frame = Frame(self._client, task, sealed.update_id, self._coordinate, encode(head), body)
            self._world.record.frames[sealed.update_id] = frame
            commit(sealed, head)

        spool.commit = noted  # type: ignore[method-assign]
        return spool

    def sealed(self, task: Task) -> int:
        """How many updates are in the spool, with a receipt or without: the device's next vector is the next one."""
        spool = self._spool(task)
        return spool.acknowledged() + len(spool.pending())

    async def send(self, task: Task, sealed: SealedUpdate, **options: Any) -> Submission:
        self._world.record.sent[sealed.update_id] = None
        sent = await super().send(task, sealed, **options)
        self._world.record.acknowledged[task.id, sealed.update_id] = self._client
        return sent


class World:
    """All machines of one schedule. `run` executes one operation under a fate."""

    def __init__(self, loop: VirtualLoop, root: Path, watch: Watch) -> None:
        self.loop = loop
        loop.wake = self._release
        self.cast = cast()
        self.record = Record()
        self.epoch = 0
        self.root = root
        self.network = Network(watch)
        self.server = Machine(SERVER, Disk.of(self.cast.server_files, root))
        self.holders = [Machine(f"holder-{i}", Disk.of(self.cast.holder_files(i), root)) for i in range(HOLDERS)]
        self.devices = [Machine(f"client-{i}", Disk.of({}, root)) for i in range(CLIENTS)]
        self.running: Server
        self.workers: list[Worker]
        self.stalled: list[tuple[Activity, asyncio.Task[str]]] = []
        self._holding: dict[Machine, KeyHolder] = {}
        self._observed: Disk | None = None
        self._observing = sqlite3.connect(":memory:")
        self.busy: set[int] = set()
        self.out: set[int] = set()
        self.unsent: set[int] = set()

    def clock(self) -> float:
        return START + self.loop.time()

    @property
    def task(self) -> Task:
        return self.cast.tasks[self.epoch]

    @property
    def tasks(self) -> list[Task]:
        """Of all epochs so far."""
        return self.cast.tasks[: self.epoch + 1]

    def sent(self) -> list[Frame]:
        """What ever left a device, in order."""
        return [self.record.frames[update] for update in self.record.sent]

    # -- machines -----------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Start the server where it does not run."""
        if not hasattr(self, "running"):
            self.server = Machine(SERVER, self.server.disk)
        elif self.server.alive:
            return
        else:
            self.server = self.server.booted()
        enter(self.server)
        self.running = open_server(Settings(data_dir=self.server.disk.root, lease_seconds=LEASE), self.clock)
        runner = web.AppRunner(make_app(self.running, work=False), handle_signals=False, access_log=None)
        await runner.setup()
        assert runner.server is not None
        self.network.hosts[SERVER] = self.server, runner.server
        self.workers = [Worker(self.running) for _ in range(WORKERS)]

    @asynccontextmanager
    async def device(self, client: int) -> AsyncIterator[Device]:
        """A device's application, started for a while."""
        if not self.devices[client].alive:
            self.devices[client] = self.devices[client].booted()
        here = self.devices[client]
        enter(here)
        async with Device(self, client, here.disk.root) as device:
            yield device

    async def holder(self, index: int) -> KeyHolder:
        """A key holder's program, started where it does not run."""
        if not self.holders[index].alive:
            self.holders[index] = self.holders[index].booted()
        here = self.holders[index]
        enter(here)
        if here not in self._holding:
            ledger = await Ledger.open(here.disk.root / "ledger.db")
            self._holding[here] = KeyHolder(self.cast.holders[index], ledger, here.disk.root, clock=self.clock)
        return self._holding[here]

    # -- what parties do ----------------------------------------------------------------------------

    async def contribute(self, client: int) -> str:
        """A device sends what it has sealed before, or trains and sends something new."""
        self.busy.add(client)  # one application at a time has a device's spool
        async with self.device(client) as device:
            try:
                for task in self.tasks:
                    if await device.resume(task):
                        return "resumed"
                vector = _one_hot(client + CLIENTS * device.sealed(self.task))
                await device.submit(self.task, {"w": vector}, base_version=self._version())
            except Refusal as refusal:
                return refusal.problem.slug
            finally:
                self.busy.discard(client)
        return "acknowledged"

    async def finish(self, client: int) -> str:
        """A device sends what it has sealed before, and nothing new."""
        async with self.device(client) as device:
            self.unsent.discard(client)
            try:
                for task in self.tasks:
                    await device.resume(task)
            except Refusal as refusal:
                self.unsent.add(client)
                return refusal.problem.slug
        return "finished"

    async def resend(self, frame: Frame, task: Task) -> str:
        """The network, or somebody confused, sends an old frame once more, perhaps to another task."""
        enter(self.devices[frame.client])
        if not self.devices[frame.client].alive:
            return "device is down"
        transport = Transport(f"http://{SERVER}", self.cast.clients[frame.client], retry=QUICK, clock=self.clock)
        async with transport:
            try:
                answer = await transport.put_frame(
                    api.update_path(task.id, frame.update_id), frame.head, [frame.body], self.cast.server.name
                )
            except Refusal as refusal:
                return refusal.problem.slug
        receipt = verify(decode(answer.body, api.UpdateReceipt).receipt, Receipt, self.cast.server.key.public)
        assert receipt.update_id.hex() == frame.update_id
        self.record.acknowledged[task.id, frame.update_id] = frame.client
        return "acknowledged"

    async def answer(self, index: int, host: str = SERVER) -> str:
        """A key holder looks once at what waits for it, in every epoch."""
        holder = await self.holder(index)
        for task in self.tasks:
            agent = Agent(holder, task, f"http://{host}", poll_seconds=1.0)
            agent._transport.clock = self.clock
            async with agent._transport:
                await agent.step()
        return "looked"

    async def work(self, worker: int) -> str:
        """A worker does what is due now, until nothing is."""
        await self.boot()
        enter(self.server)
        steps = 0
        try:
            while await self.workers[worker].step():
                steps += 1
        except Refusal as refusal:  # `Worker.run` would log it and go on
            return f"{steps} steps, then {refusal.problem.slug}"
        return f"{steps} steps"

    async def gather(self) -> str:
        """Every device contributes, all at once, and the worker sees to what comes of it."""
        idle = [client for client in range(CLIENTS) if client not in self.busy]
        outcomes = await asyncio.gather(*map(self.contribute, idle), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception | Crashed):
                raise outcome
        return ", ".join([*map(str, outcomes), await self.work(0)])

    async def answers(self, without: int) -> str:
        """All holders but one look at what waits for them."""
        for index in set(range(HOLDERS)) - {without} - self.out:
            await self.answer(index)
        return "looked"

    async def rotate(self) -> str:
        """The authority starts the next epoch of the task."""
        epoch = self.epoch + 1
        if epoch == EPOCHS:
            return "no more epochs"
        await self.boot()
        enter(self.server)
        task = self.cast.tasks[epoch]
        sha256 = await self.running.thread(keep_model, self.running.blobs, task, self.cast.model)
        await self.running.store.add_task(task, sha256, self.clock())
        self.epoch = max(self.epoch, epoch)  # somebody may have done it meanwhile
        return "rotated"

    def _version(self) -> int:
        """Of the newest model, which a device would have pulled to train on."""
        return int(self.seen("SELECT max(version) FROM models WHERE task_hash = ?", self.task.id)[0][0])

    # -- running ------------------------------------------------------------------------------------

    async def run(self, what: Coroutine[Any, Any, str], fate: Fate, name: str) -> str:
        """Run one operation until it ends, crashes or freezes."""
        activity = Activity(fate)

        async def act() -> str:
            ACTIVITY.set(activity)
            try:
                return await what
            except Crashed:
                return "crashed"
            except Refusal as refusal:
                return refusal.problem.slug

        task = asyncio.get_running_loop().create_task(act())
        frozen = asyncio.get_running_loop().create_task(activity.frozen.wait())
        await asyncio.wait({task, frozen}, return_when=asyncio.FIRST_COMPLETED)
        frozen.cancel()
        if task.done():
            outcome = _outcome(task)
            activity.frozen.set()  # what it has left behind goes on: nobody would thaw it
            activity.thaw()
        else:
            outcome = "frozen"
            self.stalled.append((activity, task))
            if fate.at % 2:
                await asyncio.sleep(LEASE + 1)  # and what it has leased is free for others
            self.record.counts["frozen"] += 1
        self.record.trace.append(
            f"{name} {fate.kind}@{fate.at}: {outcome} ({activity.points} points, {activity.writes} writes)"
        )
        return outcome

    def _release(self) -> bool:
        """Somebody waits for what is frozen: it goes on."""
        return sum(activity.thaw() for activity, _ in self.stalled) > 0

    async def thaw(self) -> None:
        """Everything that was frozen goes on, and ends."""
        while self.stalled:
            activity, task = self.stalled[0]  # the others stay there: it may have to wait for one of them
            activity.thaw()
            await asyncio.wait({task})
            self.record.trace.append(f"thawed: {_outcome(task)} ({activity.points} points)")
            del self.stalled[0]

    def seen(self, query: str, *parameters: object) -> list[Any]:
        """Rows of what is committed in the server's database, for an observer."""
        if self._observed is not self.server.disk:
            self._observing.close()
            self._observed = self.server.disk
            self._observing = sqlite3.connect(f"file:{self._observed.root}/server.db?mode=ro", uri=True)
        return self._observing.execute(query, parameters).fetchall()


def _one_hot(coordinate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.zeros(COORDINATES, dtype=np.float32)
    vector[coordinate] = 1.0
    return vector


def _outcome(task: asyncio.Task[str]) -> str:
    return "cancelled" if task.cancelled() else task.result()
