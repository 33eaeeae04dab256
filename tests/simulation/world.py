"""A server, four key holders, four devices and an authority, each on a machine of its own.

Every device contributes one-hot vectors: value 1 at a coordinate that no other update has. What a
round publishes therefore says which updates are in it, and how often.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from he_authority.tasks import build_config
from he_client import HushSumClient, Identity
from he_client.client import RESUMABLE_ABOVE
from he_client.schemes import Source
from he_client.spool import EncryptedUpdate, Spool
from he_client.submission import Submission
from he_holder.agent import Agent
from he_holder.holder import KeyHolder
from he_holder.hpke_key import HpkeKey
from he_holder.keyring import HpkeRecord
from he_holder.ledger import Ledger
from he_holder.opening import Openings
from he_migrations.run import upgrade
from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.keyfile import KeyRecord
from he_protocol import documents, paths
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import fingerprint, jwk_x, verify
from he_protocol.identity.revocation import Revocations, key_digest
from he_protocol.messages import Receipt, RevocationList, SignedUpdate, from_json, to_json
from he_protocol.problems import REVOKED_KEY
from he_protocol.schemes.kahe import box_bytes
from he_protocol.task import Task
from he_server.blobs.tensor_file import keep_model, write_tensors
from he_server.cli.stored import abandon, recover
from he_server.http.app import make_app
from he_server.jobs.worker import Worker
from he_server.services.context import ServerContext, open_server
from he_server.settings import Settings
from he_server.store.address import Address
from he_testing.clocks import FakeClock
from he_testing.parties import Authority
from he_testing.plans import tables
from tests.support.parties import zeros_digest

from .disk import Disk
from .machine import ACTIVITY, START, Activity, Crashed, Fate, Machine, VirtualLoop, clock, enter
from .schedules import HOLDERS, Schedule
from .traitor import MANNERS, Traitor
from .wire import Network, Watch

CLIENTS, THRESHOLD, AGREEMENT, WORKERS = 4, 2, 3, 2
MIN_CLIENTS = 2
COORDINATES = 64
SCALE = 2.0**16
"""The scheme's error, at most 52 integer units an update, is far below one half of it."""
COLLECT, OPENING, LEASE = 60, 600, 60
PLANS: tuple[dict[str, Any], ...] = (
    {"buckets": 2, "staleness": 0, "max_openings": 4},
    {"buckets": 1, "staleness": 1000, "max_openings": 1000},
)
"""What the epochs of the task differ in."""
LOOKS = 1
"""That a key holder takes at most, as long as it finds something to do: it polls faster then."""
IMAGES = 3
"""Of the server's disk that are kept."""
MAX_REVOKED = 2
"""Clients at most: the others are enough for a round."""
LIST_SECONDS = 30 * 86_400
"""How long a revocation list is good for: longer than any schedule."""
RESUMING = 0
"""The device that uploads in pieces (tus)."""
PAGE_BYTES = 1024
"""Of the databases: a schedule's rows are few, and every crash copies them."""
NAME = "simulated"
PROFILE = "kahe-insecure"
QUICK = RetryPolicy(first=0.5, longest=1.0, give_up=3.0)
SERVER = "server"

PLAN: dict[str, Any] = {
    "name": NAME,
    "scheme": "kahe",
    "profile": PROFILE,
    "value_range": 1.0,
    "scale": SCALE,
    "privacy": {"unit": "none"},
    "min_clients": MIN_CLIENTS,
    "collect_seconds": COLLECT,
    "opening_seconds": OPENING,
    "threshold": THRESHOLD,
    "agreement": AGREEMENT,
}


@dataclass(frozen=True, eq=False)
class Setting:
    """How many devices there are, how long their vectors are, and the epochs of their task."""

    clients: int = CLIENTS
    coordinates: int = COORDINATES
    plans: tuple[dict[str, Any], ...] = PLANS


USUAL = Setting()


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
        return {"ledger.db": self.ledger, f"hpke/{fingerprint(key.public)}.key": to_json(HpkeRecord(key.private))}

    @property
    def private(self) -> list[bytes]:
        """Every long-lived secret but the server's own."""
        parties = [*self.holders, *self.clients]
        return [p.key.private for p in parties] + [key.private for key in self.hpke] + [self.authority.key.private]


@cache
def cast(setting: Setting) -> Cast:
    """Enrols everybody, signs the epochs of the task, and migrates the databases."""
    now = START - 60
    authority = Authority(clock=FakeClock())
    server = authority.party("aggregator", "server", now=now)
    hpke = [HpkeKey.generate() for _ in range(HOLDERS)]
    holders = [authority.party(f"holder-{i}", "holder", hpke=key, now=now) for i, key in enumerate(hpke)]
    clients = [authority.party(f"client-{i}", "client", now=now) for i in range(setting.clients)]
    tensors, credentials = (TensorSpec("w", (setting.coordinates,)),), [h.credential for h in holders]
    public = authority.key.public
    tasks = []
    for epoch, special in enumerate(setting.plans, start=1):
        plan = tables(PLAN | special | {"epoch": epoch, "max_clients": setting.clients})
        config = build_config(plan, ModelSpec(tensors, zeros_digest(tensors)), server.credential, credentials, public)
        tasks.append(Task.from_token(authority.key.sign(config), public))
    model = write_tensors({"w": np.zeros(setting.coordinates, dtype=np.float32)})
    with tempfile.TemporaryDirectory(prefix="hushsum-simulation-") as folder:
        root = Path(folder)
        record = KeyRecord(server.name, server.key.public, server.key.private)
        files = {"server.key": to_json(record), "authority.pub": jwk_x(public).encode()}
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
    await upgrade("server", Address.of_file(home / "server.db").url)
    server = open_server(Settings(data_dir=home), lambda: START)
    sha256 = keep_model(server.blobs, tasks[0], model)
    await server.store.tasks.add(tasks[0], sha256, START)
    await server.store.close()
    opened = await Ledger.open(ledger)
    for task in tasks:
        await opened.join(task, f"http://{SERVER}", START)
    await opened.close()


@dataclass(frozen=True)
class Frame:
    """One encrypted update as it travels, and the coordinate that its vector has a 1 at."""

    client: int
    task: Task
    update_id: str
    coordinate: int
    base: int
    head: bytes
    body: bytes

    @property
    def client_name(self) -> str:
        return f"client-{self.client}"


@dataclass
class Record:
    """What an observer of the whole world knows.

    spoilt: updates with envelopes that these holders cannot open. revoked: clients. disowned: updates that waited for
    their round when the key that signed them was revoked, but not their client, who has a new one.
    """

    frames: dict[str, Frame] = field(default_factory=dict)
    sent: dict[str, None] = field(default_factory=dict)  # what ever left a device, in order
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)  # (task, update): client
    secrets: list[bytes] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    spoilt: dict[str, frozenset[int]] = field(default_factory=dict)
    revoked: list[int] = field(default_factory=list)
    disowned: set[str] = field(default_factory=set)
    lies: int = 0
    restored: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def revokes(self, update: str) -> bool:
        """Whether the key of an update was revoked."""
        return self.frames[update].client in self.revoked or update in self.disowned


class Device(HushSumClient):
    """The product's client; the world takes notes of what it seals and of the receipts it gets."""

    def __init__(self, world: World, client: int, state: Path) -> None:
        super().__init__(
            f"http://{SERVER}",
            world.identities[client],
            state_dir=state,
            retry=QUICK,
            clock=partial(clock, world.loop),
            resumable_above=0 if client == RESUMING else RESUMABLE_ABOVE,
        )
        self._world = world
        self._client = client

    async def encrypt(self, task: Task, source: Source, *, base_version: int) -> EncryptedUpdate:
        vector = source(0, task.length)
        self._coordinate, self._base = int(np.argmax(vector)), base_version
        self._world.record.secrets.append(vector.astype("<i8").tobytes())
        return await super().encrypt(task, source, base_version=base_version)

    def _spool(self, task: Task) -> Spool:
        spool = super()._spool(task)
        commit = spool.commit

        def noted(encrypted: EncryptedUpdate, head: SignedUpdate) -> None:
            body = b"".join(path.read_bytes() for path in encrypted.sections)
            frame = Frame(self._client, task, encrypted.update_id, self._coordinate, self._base, to_json(head), body)
            self._world.record.frames[encrypted.update_id] = frame
            commit(encrypted, head)

        spool.commit = noted  # type: ignore[method-assign]
        return spool

    def made(self, task: Task) -> int:
        """How many updates its spool knows of, whatever became of them: the device's next vector is the next one."""
        return len(self.updates(task))

    def waiting(self, task: Task) -> list[EncryptedUpdate]:
        """What is in the spool without a receipt."""
        return self._spool(task).pending()

    async def _upload(self, task: Task, encrypted: EncryptedUpdate, within: float, *, keep: bool) -> Submission:
        self._world.record.sent[encrypted.update_id] = None
        sent = await super()._upload(task, encrypted, within, keep=keep)
        self._world.record.acknowledged[task.id, encrypted.update_id] = self._client
        return sent


class World:
    """All machines of one schedule. `run` executes one operation under a fate."""

    def __init__(
        self, loop: VirtualLoop, root: Path, watch: Watch, schedule: Schedule, setting: Setting = USUAL
    ) -> None:
        self.loop = loop
        loop.wake = self._release
        self.cast = cast(setting)
        self.identities = list(self.cast.clients)
        self.record = Record()
        self.epoch = 0
        self.root = root
        self.network = Network(watch)
        self.server = Machine(SERVER, Disk.of(self.cast.server_files, root))
        self.holders = [Machine(f"holder-{i}", Disk.of(self.cast.holder_files(i), root)) for i in range(HOLDERS)]
        self.devices = [Machine(f"client-{i}", Disk.of({}, root)) for i in range(setting.clients)]
        self.running: ServerContext
        self.workers: list[Worker]
        self.stalled: list[tuple[Activity, asyncio.Task[str]]] = []
        self._holding: dict[Machine, KeyHolder] = {}
        self._observed: Disk | None = None
        self._observing = sqlite3.connect(":memory:")
        self.busy: set[int] = set()
        self.out: set[int] = set()
        self.unsent: set[int] = set()
        self.traitor = schedule.traitor
        self.lean = schedule.lean
        self.spoils: dict[str, frozenset[int]] = {}
        self._mood = random.Random(schedule.number)
        self._openings: dict[tuple[Machine, str], Openings] = {}
        self._images: deque[tuple[int, Disk]] = deque(maxlen=IMAGES)

    def clock(self) -> float:
        return START + self.loop.time()

    @property
    def task(self) -> Task:
        return self.cast.tasks[self.epoch]

    @property
    def tasks(self) -> list[Task]:
        """Of all epochs so far."""
        return self.cast.tasks[: self.epoch + 1]

    @property
    def honest(self) -> list[int]:
        """The numbers of the key holders that keep to the rules."""
        return [index for index in range(HOLDERS) if index != self.traitor]

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
        self.running = open_server(self.settings(), self.clock)
        runner = web.AppRunner(make_app(self.running, work=False), handle_signals=False, access_log=None)
        await runner.setup()
        assert runner.server is not None
        self.network.hosts[SERVER] = self.server, runner.server
        self.workers = [Worker(self.running) for _ in range(WORKERS)]

    def settings(self) -> Settings:
        settings = Settings(data_dir=self.server.disk.root, lease_seconds=LEASE)
        return settings.model_copy(update={"retain_bytes": 0}) if self.lean else settings

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

    async def contribute(self, client: int, spoilt_for: frozenset[int] = frozenset()) -> str:
        """A device sends what it has sealed before, or trains on a model that is new to it and sends that.

        spoilt_for: holders that cannot open their envelopes of a new update.
        """
        self.busy.add(client)  # one application at a time has a device's spool
        async with self.device(client) as device:
            try:
                for task in self.tasks:
                    if await device.resume(task):
                        return "resumed"
                version = self.version()
                if self._waits(client, version):
                    return "waits for a model"
                vector = one_hot(client + CLIENTS * device.made(self.task), COORDINATES)
                self.spoils[f"client-{client}"] = spoilt_for
                await device.submit(self.task, {"w": vector}, base_version=version)
            except ProblemError as refusal:
                return refusal.problem.slug
            finally:
                self.busy.discard(client)
        return "acknowledged"

    def spoil(self, client: str, update_id: bytes, shares: bytes) -> bytes:
        """The envelopes of an update, those to some holders made useless where `contribute` was told so."""
        broken = self.spoils.pop(client, frozenset())
        if not broken:
            return shares
        self.record.spoilt[update_id.hex()] = broken
        size, made = box_bytes(self.task.sharing), bytearray(shares)
        first = len(shares) - size * HOLDERS
        for holder in broken:
            made[first + size * holder] ^= 1
        return bytes(made)

    def _waits(self, client: int, version: int) -> bool:
        """Whether the server has an update of a device on this version, and would have no second one."""
        query = (
            "SELECT 1 FROM updates JOIN rounds ON rounds.id = round_id WHERE updates.task_hash = ? AND client = ?"
            " AND base_version = ? AND (state != 'failed' OR opening_deadline > 0)"
        )
        return bool(self.seen(query, self.task.id, f"client-{client}", version))

    async def finish(self, client: int) -> str:
        """A device sends what it has sealed before, and nothing new."""
        async with self.device(client) as device:
            self.unsent.discard(client)
            waiting = []
            for task in self.tasks:
                await device.resume(task)
                waiting += [one.problem for one in device.updates(task) if one.state == "waiting"]
            if set(waiting) - {REVOKED_KEY.slug}:
                self.unsent.add(client)
        return ", ".join(waiting) or "finished"

    async def resend(self, frame: Frame, task: Task) -> str:
        """The network, or somebody confused, sends an old frame once more, perhaps to another task."""
        enter(self.devices[frame.client])
        if not self.devices[frame.client].alive:
            return "device is down"
        transport = HttpTransport(f"http://{SERVER}", self.cast.clients[frame.client], retry=QUICK, clock=self.clock)
        async with transport:
            try:
                answer = await transport.put_frame(
                    paths.update_path(task.id, frame.update_id), frame.head, [frame.body], self.cast.server.name
                )
            except ProblemError as refusal:
                return refusal.problem.slug
        receipt = verify(from_json(answer.body, documents.UpdateReceipt).receipt, Receipt, self.cast.server.key.public)
        assert receipt.update_id.hex() == frame.update_id
        self.record.acknowledged[task.id, frame.update_id] = frame.client
        return "acknowledged"

    async def answer(self, index: int, host: str = SERVER, looks: int = LOOKS) -> str:
        """A key holder looks at what waits for it, in every epoch."""
        holder = await self.holder(index)
        manner = self._mood.choice(MANNERS) if index == self.traitor else "honest"
        if manner == "silent":
            return manner
        for task in self.tasks:
            agent = Agent(holder, task, f"http://{host}", poll_seconds=1.0)
            agent._transport.clock = self.clock
            here = self.holders[index], task.id
            # What it has in memory; not if somebody else of this program is at it.
            agent._openings = self._openings.pop(here) if here in self._openings else Openings(holder, task)
            if manner != "honest":
                agent._openings = Traitor(holder, task, manner)
                self.record.counts[f"traitor {manner}"] += 1
            async with agent._transport:
                for _ in range(looks):
                    if not await agent.step():
                        break
            if manner == "honest":
                self._openings[here] = agent._openings
        return manner

    async def work(self, worker: int) -> str:
        """A worker does what is due now, until nothing is."""
        await self.boot()
        enter(self.server)
        steps = 0
        try:
            while await self.workers[worker].step():
                steps += 1
        except ProblemError as refusal:  # `Worker.run` would log it and go on
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
        return ", ".join([await self.answer(index) for index in sorted(set(range(HOLDERS)) - {without} - self.out)])

    async def rotate(self) -> str:
        """The authority starts the next epoch of the task."""
        epoch = self.epoch + 1
        if epoch == len(self.cast.tasks):
            return "no more epochs"
        await self.boot()
        enter(self.server)
        task = self.cast.tasks[epoch]
        sha256 = await self.running.threads.run(keep_model, self.running.blobs, task, self.cast.model)
        await self.running.store.tasks.add(task, sha256, self.clock())
        self.epoch = max(self.epoch, epoch)  # somebody may have done it meanwhile
        return "rotated"

    async def revoke(self, client: int | None) -> str:
        """The authority revokes one more client, if any is given, and its list comes to the server."""
        if client is not None and client not in self.record.revoked and len(self.record.revoked) < MAX_REVOKED:
            self.record.revoked.append(client)
        if not self.record.revoked:
            return "nobody"
        keys = [self.cast.clients[client].key.public for client in self.record.revoked]
        await self.publish_revoked(keys, number=len(keys), until=int(START) + LIST_SECONDS)
        return f"client-{client}"

    async def publish_revoked(self, keys: Iterable[bytes], *, number: int, until: int) -> None:
        """The authority's list of revoked keys comes to the server."""
        await self.boot()
        enter(self.server)
        digests = tuple(sorted(map(key_digest, keys)))
        signed = RevocationList(number, int(START), until, digests)
        found = Revocations.read(self.cast.authority.key.sign(signed), self.cast.authority.key.public)
        await self.running.store.revocations.learn(found, self.clock())
        self.running.revocations.invalidate()

    async def abandon(self, task: Task, number: int) -> str:
        """The operator gives a round up."""
        await self.boot()
        enter(self.server)
        await abandon(self.settings(), task.id, number)
        return "abandoned"

    async def recover(self, task: Task) -> str:
        """The operator has the server go on where key holders are."""
        await self.boot()
        enter(self.server)
        return "opening {}, version {}".format(*await recover(self.settings(), task.id, None, None))

    def back_up(self) -> None:
        """Keep an image of the server's disk."""
        self._images.append((self.epoch, self.server.disk.survivor(power=False)))

    def restore(self, pick: int) -> bool:
        """The server's machine goes on with an older image of its disk. Whether there is one."""
        if not self._images:
            return False
        epoch, image = self._images[-1 - pick % len(self._images)]
        self.server.stop()
        self.server.disk = image.survivor(power=False)
        self.epoch = epoch
        self.record.restored += 1
        kept = {(task, update) for task, update in self.seen("SELECT task_hash, update_id FROM updates")}
        self.record.acknowledged = {key: c for key, c in self.record.acknowledged.items() if key in kept}
        return True

    def version(self) -> int:
        """Of the newest model, which a device would have pulled to train on."""
        return int(self.seen("SELECT max(version) FROM models WHERE task_hash = ?", self.task.id)[0][0])

    # -- running ------------------------------------------------------------------------------------

    async def run(self, what: Coroutine[Any, Any, str], fate: Fate, name: str, only: str = "") -> str:
        """Run one operation until it ends, crashes or freezes. only: see `Activity`."""
        activity = Activity(fate, only)

        async def act() -> str:
            ACTIVITY.set(activity)
            try:
                return await what
            except Crashed:
                return "crashed"
            except ProblemError as refusal:
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
        self.record.trace.append(f"{name} {fate}: {outcome} ({activity.points} points, {activity.writes} writes)")
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


def one_hot(coordinate: int, length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.zeros(length, dtype=np.float32)
    vector[coordinate] = 1.0
    return vector


def _outcome(task: asyncio.Task[str]) -> str:
    return "cancelled" if task.cancelled() else task.result()
