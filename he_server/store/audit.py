"""The audit log: written in the transaction of what it records, and only ever appended to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from he_server.rules.audit_chain import GENESIS, Entry, Event, chained
from he_server.store.engine import Database
from he_server.store.schema import audit

_LOCK = 0x48534155


async def append(connection: AsyncConnection, event: Event, task: str, round_number: int, **detail: str | int) -> None:
    """Add an entry that exists if and only if the transaction commits.

    The last statement of its transaction: it waits for every other appender, and a transaction that waits here
    must not hold back one that goes on to take other locks.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    seq, previous = await _head(connection)
    text = msgspec.json.encode(detail).decode()
    entry = chained(Entry(seq + 1, time.time(), event, task, round_number, text), previous)
    await connection.execute(insert(audit).values(**msgspec.structs.asdict(entry)))


@dataclass(frozen=True)
class AuditStore:
    """Reads of `audit`."""

    database: Database

    async def head(self) -> tuple[int, bytes]:
        """Number and hash of the last entry; 0 and `GENESIS` of an empty log."""
        async with self.database.read() as connection:
            return await _head(connection)

    async def entries(self) -> list[Entry]:
        """The whole log, oldest first."""
        async with self.database.read() as connection:
            return [_entry(row) for row in await connection.execute(select(audit).order_by(audit.c.seq))]


async def _head(connection: AsyncConnection) -> tuple[int, bytes]:
    query = select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    return (0, GENESIS) if row is None else (row.seq, bytes.fromhex(row.hash))


def _entry(row: Row[Any]) -> Entry:
    return Entry(row.seq, row.time, row.event, row.task, row.round, row.detail, row.previous, row.hash)
