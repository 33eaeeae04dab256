"""A key holder's ledger: what it has joined, voted for and refused, in a SQLite file of its own.

A vote is one transaction that reads the history, judges, and writes; it is durable before the vote is signed.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from sqlalchemy import (
    URL,
    ColumnClause,
    Connection,
    Integer,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from he_holder.ledger_schema import identity, refusals, revocations, tasks, voted_updates, votes
from he_holder.request import LedgerView, OpeningRequest
from he_holder.rules import VOTING, Rule, check_alive, check_all
from he_migrations.run import MigrationError, upgrade
from he_party.files import close_database, private_directory
from he_party.uncancelled import to_its_end
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import token_hash
from he_protocol.identity.revocation import Revocations
from he_protocol.problems import DATABASE_UNAVAILABLE
from he_protocol.task import Task

LEDGER_FILE = "ledger.db"
BATCH = 500
"""Update ids asked for in one query: SQLite bounds the number of parameters."""

KEPT_REFUSALS = 1_000
"""Of each problem, the newest: a server can cause them without end, but cannot wash one kind out with another."""

_ROWID: ColumnClause[int] = literal_column("refusals.rowid", Integer)


@dataclass(frozen=True)
class VoteRecord:
    """A manifest that was voted for; times in Unix seconds. settled: the share has left, or is not wanted any more."""

    opening: int
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
        """The ledger in a file, made or migrated as needed.

        Raises `database-unavailable` for the schema of a newer release, and for a file that is no ledger.
        """
        private_directory(path.parent)
        close_database(path)
        url = _url(path)
        try:
            await upgrade("ledger", url)
        except (MigrationError, DBAPIError) as error:
            raise ProblemError(DATABASE_UNAVAILABLE, f"the schema of {path} cannot be upgraded: {error}") from None
        engine = create_async_engine(url)
        event.listen(engine.sync_engine, "connect", _prepare)
        event.listen(engine.sync_engine, "begin", _begin)
        ledger = cls(engine, b"")
        try:
            async with ledger._transaction() as connection:
                ledger.name = (await connection.execute(select(identity.c.ledger))).scalar_one()
        except BaseException:
            await ledger.close()
            raise
        return ledger

    async def close(self) -> None:
        await self._engine.dispose()

    @to_its_end
    async def join(self, task: Task, server_url: str, now: float) -> None:
        """Remember a task whose sums this holder is willing to open. Raises `epoch-destroyed`."""
        values = {"task_hash": task.hash, "token": task.token, "server_url": server_url, "joined": now}
        async with self._transaction() as connection:
            check_alive(task, await _destroyed(connection, task.hash))
            await connection.execute(
                insert_or(tasks)
                .values(values)
                .on_conflict_do_update(["task_hash"], set_={"server_url": server_url, "left": None})
            )

    @to_its_end
    async def joined(self) -> list[tuple[str, str]]:
        """(signed task configuration, server URL) of every joined task."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(tasks.c.token, tasks.c.server_url).order_by(tasks.c.joined))
            return [(row.token, row.server_url) for row in rows]

    @to_its_end
    async def informed(self, request: OpeningRequest) -> OpeningRequest:
        """The request with what this ledger knows that bears on it."""
        async with self._transaction() as connection:
            return await _informed(connection, request)

    @to_its_end
    async def decide(self, request: OpeningRequest, rules: tuple[Rule, ...] = VOTING) -> OpeningRequest:
        """Check a manifest against the ledger and, if all rules pass, record the vote: one transaction.

        The same manifest again changes nothing. Answers the request with the history. Raises the first refusal.
        """
        async with self._transaction() as connection:
            request = await _informed(connection, request)
            await asyncio.to_thread(check_all, request, rules)
            if (
                request.ledger_view.voted != request.manifest_hash
            ):  # another one that got this far meets the primary key
                await _record(connection, request)
        return request

    @to_its_end
    async def refused(self, task: Task, number: int, refusal: ProblemError, now: float, manifest_token: str) -> None:
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

    @to_its_end
    async def learn_revocations(self, offered: Revocations) -> None:
        """Replace the stored list by a verified one, unless the stored one is as new."""
        async with self._transaction() as connection:
            known = await connection.scalar(select(func.max(revocations.c.number)))
            if offered.number > (known or 0):
                await connection.execute(delete(revocations))
                await connection.execute(insert(revocations).values(number=offered.number, token=offered.token))

    @to_its_end
    async def settled(self, task: Task, number: int, now: float) -> None:
        """Remember that a round needs nothing more of us: our share has left, or the round has ended without it."""
        mine = (votes.c.task_hash == task.hash) & (votes.c.round == number)
        async with self._transaction() as connection:
            await connection.execute(update(votes).where(mine, votes.c.settled.is_(None)).values(settled=now))

    @to_its_end
    async def destroy(self, task: Task, now: float) -> None:
        """Never join or open this task again. Durable before any key is touched."""
        mine = (tasks.c.task_hash == task.hash) & tasks.c.destroyed.is_(None)
        async with self._transaction() as connection:
            await connection.execute(update(tasks).where(mine).values(destroyed=now))

    @to_its_end
    async def destroyed(self) -> frozenset[bytes]:
        """Hashes of the tasks whose epoch was destroyed."""
        async with self._transaction() as connection:
            return frozenset(await connection.scalars(select(tasks.c.task_hash).where(tasks.c.destroyed.is_not(None))))

    @to_its_end
    async def leave(self, task: Task, now: float) -> None:
        """Open no sums of this task any more, until it is joined again."""
        mine = (tasks.c.task_hash == task.hash) & tasks.c.left.is_(None)
        async with self._transaction() as connection:
            await connection.execute(update(tasks).where(mine).values(left=now))

    @to_its_end
    async def left(self) -> frozenset[bytes]:
        """Hashes of the tasks that this holder has left."""
        async with self._transaction() as connection:
            return frozenset(await connection.scalars(select(tasks.c.task_hash).where(tasks.c.left.is_not(None))))

    @to_its_end
    async def snapshot(self) -> bytes:
        """The file's bytes, read without a concurrent writer."""
        async with self._transaction():
            return await asyncio.to_thread(Path(str(self._engine.url.database)).read_bytes)

    @to_its_end
    async def rename(self) -> None:
        """A new name: keys that belong to the ledger that this one is a copy of are refused from now on."""
        self.name = secrets.token_bytes(len(self.name))
        async with self._transaction() as connection:
            await connection.execute(update(identity).values(ledger=self.name))

    @to_its_end
    async def votes(self, task_hash: bytes) -> list[VoteRecord]:
        """Votes of a task, by opening number."""
        columns = (votes.c.opening, votes.c.round, votes.c.manifest_hash, votes.c.model_version, votes.c.updates)
        query = select(*columns, votes.c.decided, votes.c.settled).where(votes.c.task_hash == task_hash)
        async with self._transaction() as connection:
            return [VoteRecord(*row) for row in await connection.execute(query.order_by(votes.c.opening))]

    @to_its_end
    async def newest(self, task_hash: bytes) -> tuple[int, int]:
        """The highest opening number and model version in the votes of a task."""
        query = select(func.max(votes.c.opening), func.max(votes.c.model_version)).where(votes.c.task_hash == task_hash)
        async with self._transaction() as connection:
            opening, version = (await connection.execute(query)).one()
        return opening or 0, version or 0

    @to_its_end
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
        except IntegrityError:
            raise
        except (DBAPIError, sqlite3.Error) as error:  # held by another for too long, a full disk, a damaged file
            raise ProblemError(DATABASE_UNAVAILABLE, "the ledger", got=str(getattr(error, "orig", error))) from error


def _url(path: Path) -> URL:
    """Never as text, in which a ? or a % of a folder's name would mean something."""
    return URL.create("sqlite+aiosqlite", database=str(path.absolute()))


async def _informed(connection: AsyncConnection, request: OpeningRequest) -> OpeningRequest:
    task, manifest = request.task, request.manifest
    mine = votes.c.task_hash == task.hash
    lower = select(func.max(votes.c.model_version), func.max(votes.c.formed)).where(
        mine, votes.c.opening < manifest.opening
    )
    version, formed = (await connection.execute(lower)).one()
    number = select(votes.c.manifest_hash).where(mine, votes.c.opening == manifest.opening)
    before, repeated = await _voted_before(connection, request)
    token = await connection.scalar(select(revocations.c.token))
    known = await asyncio.to_thread(Revocations.read, token, request.authority) if token else Revocations()
    ledger_view = LedgerView(
        voted=await connection.scalar(number),
        opened_before=before,
        repeated=repeated,
        model_version=version or 0,
        formed=formed or 0,
        destroyed=await _destroyed(connection, task.hash),
        revocations=known,
    )
    return replace(request, ledger_view=ledger_view)


async def _voted_before(
    connection: AsyncConnection, request: OpeningRequest
) -> tuple[frozenset[bytes], frozenset[tuple[str, int]]]:
    """Those of a manifest's update ids, and of its clients with their base versions, that stand in other votes."""
    other = (voted_updates.c.task_hash == request.task.hash) & (voted_updates.c.opening != request.manifest.opening)
    ids, bases = set[bytes](), set[tuple[str, int]]()
    columns = select(voted_updates.c.update_id, voted_updates.c.client, voted_updates.c.base_version).where(other)
    for at in range(0, len(request.headers), BATCH):
        batch = request.headers[at : at + BATCH]
        asked = [header.update_id for header in batch]
        ids.update(row[0] for row in await connection.execute(columns.where(voted_updates.c.update_id.in_(asked))))
        if not request.task.config.privacy.noisy:
            wanted = {(header.client, header.base_version) for header in batch}
            clients = [header.client for header in batch]
            found = await connection.execute(columns.where(voted_updates.c.client.in_(clients)))
            bases.update(wanted & {(row.client, row.base_version) for row in found})
    return frozenset(ids), frozenset(bases)


async def _destroyed(connection: AsyncConnection, task_hash: bytes) -> bool:
    at: float | None = await connection.scalar(select(tasks.c.destroyed).where(tasks.c.task_hash == task_hash))
    return at is not None


async def _record(connection: AsyncConnection, request: OpeningRequest) -> None:
    manifest, task_hash = request.manifest, request.task.hash
    await connection.execute(
        insert(votes).values(
            task_hash=task_hash,
            opening=manifest.opening,
            manifest_hash=request.manifest_hash,
            manifest=request.manifest_token,
            round=manifest.round,
            model_version=manifest.model_version,
            formed=manifest.formed,
            updates=len(manifest.updates),
            decided=request.now,
        )
    )
    rows = [
        {
            "task_hash": task_hash,
            "update_id": header.update_id,
            "opening": manifest.opening,
            "client": header.client,
            "base_version": header.base_version,
        }
        for header in request.headers
    ]
    await connection.execute(insert(voted_updates), rows)


def _prepare(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # `_begin` opens transactions itself
    cursor = connection.cursor()
    # EXTRA: under FULL a power cut after the commit can bring the rollback journal, and the old state, back.
    for pragma in ("synchronous=EXTRA", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # Immediate: what a decision reads cannot change before it writes, even if another process has the file open.
    driver = cast(AdaptedConnection, connection.connection.dbapi_connection)
    driver.run_async(lambda raw: raw.execute("BEGIN IMMEDIATE"))  # one change of threads; a cursor would make it three
