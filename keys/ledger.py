"""A key holder's ledger: what it has joined, opened and refused, in a SQLite file of its own.

The decision to open is one transaction that reads the history, judges, and writes; it is durable
before the first byte of a share leaves. Primary keys repeat the two rules that matter most: one
manifest per round, one opening per update.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    Column,
    ColumnClause,
    Connection,
    Float,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from he_protocol.keyfile import close_database, private_directory
from he_protocol.messages import Manifest, SignedUpdate
from he_protocol.problems import DATABASE_UNAVAILABLE, Refusal
from he_protocol.revocation import Revocations
from he_protocol.signing import read_unverified, token_hash
from he_protocol.task import Task
from keys.checks import RULES, History, Request, Rule, check_alive, judge
from migrations.run import upgrade

LEDGER_FILE = "ledger.db"
BATCH = 500
"""Update ids asked for in one query: SQLite bounds the number of parameters."""

KEPT_REFUSALS = 1_000
"""Of each problem, the newest: a server can cause them without end, but cannot wash one kind out with another."""

metadata = MetaData()
identity = Table("identity", metadata, Column("ledger", LargeBinary, primary_key=True))
tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("token", Text, nullable=False),
    Column("server_url", Text, nullable=False),
    Column("joined", Float, nullable=False),
    Column("destroyed", Float),
)
openings = Table(
    "openings",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("manifest_hash", LargeBinary, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("updates", Integer, nullable=False),
    Column("decided", Float, nullable=False),
    Column("settled", Float),
    ForeignKeyConstraint(["task_hash"], ["tasks.task_hash"], name="openings_task"),
)
opened_updates = Table(
    "opened_updates",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("update_id", LargeBinary, primary_key=True),
    Column("round", Integer, nullable=False),
    ForeignKeyConstraint(
        ["task_hash", "round"], ["openings.task_hash", "openings.round"], name="opened_updates_opening"
    ),
)
refusals = Table(
    "refusals",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("manifest_hash", LargeBinary, primary_key=True),
    Column("problem", Text, primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("seen", Float, nullable=False),
)
revocations = Table(
    "revocations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
)
_ROWID: ColumnClause[int] = literal_column("refusals.rowid", Integer)


@dataclass(frozen=True)
class OpeningRecord:
    """One accepted manifest; times in Unix seconds. settled: the share has left, or nobody wants it any more."""

    round: int
    manifest_hash: bytes
    model_version: int
    updates: int
    decided: float
    settled: float | None


@dataclass(frozen=True)
class RefusalRecord:
    """One refused manifest and why."""

    round: int
    manifest_hash: bytes
    problem: str
    detail: str
    seen: float


class Ledger:
    """Opened with `Ledger.open`; every method is one transaction. `name`: 16 random bytes, its own for ever.

    Every method may raise `database-unavailable`.
    """

    def __init__(self, engine: AsyncEngine, name: bytes) -> None:
        self._engine = engine
        self.name = name

    @classmethod
    async def open(cls, path: Path) -> Ledger:
        """The ledger in a file, made or migrated as needed."""
        private_directory(path.parent)
        close_database(path)
        url = f"sqlite+aiosqlite:///{path}"
        await upgrade("ledger", url)
        engine = create_async_engine(url)
        event.listen(engine.sync_engine, "connect", _prepare)
        event.listen(engine.sync_engine, "begin", _begin)
        ledger = cls(engine, b"")
        async with ledger._transaction() as connection:
            ledger.name = (await connection.execute(select(identity.c.ledger))).scalar_one()
        return ledger

    async def close(self) -> None:
        await self._engine.dispose()

    async def join(self, task: Task, server_url: str, now: float) -> None:
        """Remember a task whose sums this holder is willing to open. Raises `epoch-destroyed`."""
        values = {"task_hash": task.hash, "token": task.token, "server_url": server_url, "joined": now}
        async with self._transaction() as connection:
            check_alive(task, await _destroyed(connection, task.hash))
            await connection.execute(
                insert_or(tasks).values(values).on_conflict_do_update(["task_hash"], set_={"server_url": server_url})
            )

    async def joined(self) -> list[tuple[str, str]]:
        """(signed task configuration, server URL) of every joined task."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(tasks.c.token, tasks.c.server_url).order_by(tasks.c.joined))
            return [(row.token, row.server_url) for row in rows]

    async def decide(
        self,
        task: Task,
        authority: bytes,
        manifest_token: str,
        updates: tuple[SignedUpdate, ...],
        *,
        floor: int,
        now: float,
        require_revocations: bool = False,
        rules: tuple[Rule, ...] = RULES,
    ) -> Request:
        """Judge a manifest against the history and, if every rule is content, record it: one transaction.

        The same manifest again is accepted again and changes nothing. Raises the first refusal.
        """
        manifest = read_unverified(manifest_token, Manifest)
        async with self._transaction() as connection:
            history = await _history(connection, task.hash, manifest, authority)
            request = Request(task, authority, manifest_token, updates, history, floor, now, require_revocations)
            await asyncio.to_thread(judge, request, rules)
            if history.manifest_hash != request.manifest_hash:  # a fork that got this far meets the primary key
                await _record(connection, request)
        return request

    async def refused(self, task: Task, number: int, refusal: Refusal, now: float, manifest_token: str) -> None:
        """Remember a refusal with its manifest: forks are evidence against the server."""
        values = {
            "task_hash": task.hash,
            "round": number,
            "manifest_hash": token_hash(manifest_token),
            "manifest": manifest_token,
            "problem": refusal.problem.slug,
            "detail": str(refusal),
            "seen": now,
        }
        same = refusals.c.problem == refusal.problem.slug
        newest = select(_ROWID).where(same).order_by(_ROWID.desc()).limit(KEPT_REFUSALS)
        async with self._transaction() as connection:
            await connection.execute(insert_or(refusals).values(values).on_conflict_do_nothing())
            await connection.execute(delete(refusals).where(same, _ROWID.not_in(newest)))

    async def learn_revocations(self, offered: Revocations) -> None:
        """Keep a verified list in the place of the one before, unless that one is as new."""
        async with self._transaction() as connection:
            known = await connection.scalar(select(func.max(revocations.c.number)))
            if offered.number > (known or 0):
                await connection.execute(delete(revocations))
                await connection.execute(insert(revocations).values(number=offered.number, token=offered.token))

    async def settled(self, task: Task, number: int, now: float) -> None:
        """Remember that a round needs nothing more of us: our share has left, or a quorum of the others was faster."""
        mine = (openings.c.task_hash == task.hash) & (openings.c.round == number)
        async with self._transaction() as connection:
            await connection.execute(update(openings).where(mine, openings.c.settled.is_(None)).values(settled=now))

    async def destroy(self, task: Task, now: float) -> None:
        """Never join or open this task again. Durable before any key is touched."""
        mine = (tasks.c.task_hash == task.hash) & tasks.c.destroyed.is_(None)
        async with self._transaction() as connection:
            await connection.execute(update(tasks).where(mine).values(destroyed=now))

    async def destroyed(self) -> frozenset[bytes]:
        """Hashes of the tasks whose epoch was destroyed."""
        async with self._transaction() as connection:
            return frozenset(await connection.scalars(select(tasks.c.task_hash).where(tasks.c.destroyed.is_not(None))))

    async def snapshot(self) -> bytes:
        """The file's bytes, while nobody writes."""
        async with self._transaction():
            return await asyncio.to_thread(Path(str(self._engine.url.database)).read_bytes)

    async def rename(self) -> None:
        """A new name: keys that belong to the ledger that this one is a copy of are refused from now on."""
        self.name = secrets.token_bytes(len(self.name))
        async with self._transaction() as connection:
            await connection.execute(update(identity).values(ledger=self.name))

    async def openings(self, task_hash: bytes) -> list[OpeningRecord]:
        """Accepted manifests of a task, by round."""
        columns = (openings.c.round, openings.c.manifest_hash, openings.c.model_version, openings.c.updates)
        query = select(*columns, openings.c.decided, openings.c.settled).where(openings.c.task_hash == task_hash)
        async with self._transaction() as connection:
            return [OpeningRecord(*row) for row in await connection.execute(query.order_by(openings.c.round))]

    async def refusals(self, task_hash: bytes) -> list[RefusalRecord]:
        """Refused manifests of a task, oldest first."""
        columns = (refusals.c.round, refusals.c.manifest_hash, refusals.c.problem, refusals.c.detail, refusals.c.seen)
        query = select(*columns).where(refusals.c.task_hash == task_hash).order_by(refusals.c.seen)
        async with self._transaction() as connection:
            return [RefusalRecord(*row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:  # another program held the file for too long, or the disk is full
            raise Refusal(DATABASE_UNAVAILABLE, "the ledger", got=str(error.orig)) from error


async def _history(connection: AsyncConnection, task_hash: bytes, manifest: Manifest, authority: bytes) -> History:
    mine = openings.c.task_hash == task_hash
    other = mine & (openings.c.round != manifest.round)
    known = await connection.scalar(select(openings.c.manifest_hash).where(mine, openings.c.round == manifest.round))
    count = await connection.scalar(select(func.count()).select_from(openings).where(other))
    version = await connection.scalar(
        select(func.max(openings.c.model_version)).where(other, openings.c.round < manifest.round)
    )
    asked = [entry.update_id for entry in manifest.updates]
    before: set[bytes] = set()
    for at in range(0, len(asked), BATCH):
        rows = await connection.scalars(
            select(opened_updates.c.update_id).where(
                opened_updates.c.task_hash == task_hash,
                opened_updates.c.round != manifest.round,
                opened_updates.c.update_id.in_(asked[at : at + BATCH]),
            )
        )
        before.update(rows)
    token = await connection.scalar(select(revocations.c.token))
    revoked = await asyncio.to_thread(Revocations.read, token, authority) if token else Revocations()
    destroyed = await _destroyed(connection, task_hash)
    return History(known, frozenset(before), count or 0, version or 0, destroyed, revoked)


async def _destroyed(connection: AsyncConnection, task_hash: bytes) -> bool:
    at: float | None = await connection.scalar(select(tasks.c.destroyed).where(tasks.c.task_hash == task_hash))
    return at is not None


async def _record(connection: AsyncConnection, request: Request) -> None:
    manifest, task_hash = request.manifest, request.task.hash
    await connection.execute(
        insert(openings).values(
            task_hash=task_hash,
            round=manifest.round,
            manifest_hash=request.manifest_hash,
            manifest=request.manifest_token,
            model_version=manifest.model_version,
            updates=len(manifest.updates),
            decided=request.now,
        )
    )
    await connection.execute(
        insert(opened_updates),
        [{"task_hash": task_hash, "update_id": entry.update_id, "round": manifest.round} for entry in manifest.updates],
    )


def _prepare(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # `_begin` opens transactions itself
    cursor = connection.cursor()
    # EXTRA: under FULL a power cut after the commit can bring the rollback journal, and the old state, back.
    for pragma in ("synchronous=EXTRA", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # Immediate: what a decision reads cannot change before it writes, whoever else has the file open.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
