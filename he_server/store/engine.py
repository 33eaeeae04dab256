"""Engines for SQLite and PostgreSQL, and the transactions that all parts of the store run in."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import cast

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, event, inspect, select, text
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from he_protocol.errors import ProblemError
from he_protocol.problems import DATABASE_UNAVAILABLE, DISK_FULL
from he_server.store.address import Address
from he_server.store.schema import installation

BUSY_MILLISECONDS = 10_000
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # an acknowledged update survives a power cut
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_MILLISECONDS}",
)
_WRITES = "hushsum_writes"
_REFERRING = "tasks, rounds, updates, accumulators, shares"
"""Tables of which every transaction that refers to blobs locks one before it looks whether they are there."""


def make_engine(address: Address) -> AsyncEngine:
    """An engine for a database; nothing is connected yet."""
    if address.url.get_backend_name() == "postgresql":
        options = dict(address.options)
        return create_async_engine(address.url, connect_args=options, pool_pre_ping=True, pool_size=10, pool_timeout=10)
    engine = create_async_engine(address.url)
    event.listen(engine.sync_engine, "do_connect", partial(_check_there, address))
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _check_there(address: Address, *_: object) -> None:
    """SQLite makes a file that it does not find: here only a migration does."""
    if address.file is not None and not address.file.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no database", str(address.file))


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # no implicit BEGIN: `_begin_sqlite` says which kind
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that starts to write later can fail at once with "database is locked";
    # an immediate one waits its turn.
    statement = "BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES, False) else "BEGIN"
    driver = cast(AdaptedConnection, connection.connection.dbapi_connection)
    driver.run_async(lambda raw: raw.execute(statement))  # one change of threads; through a cursor it would be three


class Database:
    """Transactions over one engine. Every failure of the database itself becomes a `ProblemError`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer: the others sleep and try again, ever longer. Those of this process come one by one.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    async def ping(self) -> None:
        """Raises `database-unavailable` unless the database answers."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1 FROM tasks LIMIT 1"))

    async def id(self) -> str:
        """Which database this is, wherever it is; "" where there is no schema."""
        async with self.read() as connection:
            if not await connection.run_sync(lambda there: inspect(there).has_table(installation.name)):
                return ""
            return str((await connection.execute(select(installation.c.id))).scalar_one())

    async def revision(self) -> str:
        """The schema's version. Raises `database-unavailable` when there is no schema."""
        async with self.read() as connection:
            return str((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one())

    async def time(self) -> float:
        """The database's clock, Unix seconds."""
        postgres = self._engine.dialect.name == "postgresql"
        query = "SELECT extract(epoch FROM clock_timestamp())" if postgres else "SELECT strftime('%s', 'now')"
        async with self.read() as connection:
            return float((await connection.execute(text(query))).scalar_one())

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may change something. It is taken back when an error leaves it."""
        async with self._turn, translated(), self._engine.connect() as plain:
            connection = await plain.execution_options(**{_WRITES: True})
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Around a sweep: transactions under way are waited for, and none begins to change which blobs are needed."""
        async with self.write() as connection:
            if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
                await connection.execute(text(f"LOCK TABLE {_REFERRING} IN EXCLUSIVE MODE"))
            yield

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that changes nothing."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            yield connection


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn failures of the database itself into `database-unavailable` or `disk-full`."""
    try:
        yield
    except DBAPIError as error:
        gone = isinstance(error, (OperationalError, InterfaceError, InternalError)) or error.connection_invalidated
        if not gone:
            raise
        raise _refusal(error) from error
    except (OSError, PoolTimeout, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> ProblemError:
    if isinstance(error, FileNotFoundError):
        return ProblemError(DATABASE_UNAVAILABLE, "there is none yet: `he-server migrate` makes one")
    reason = str(getattr(error, "orig", error) or type(error).__name__)
    if "is full" in reason or "No space left" in reason:  # SQLite's words, and PostgreSQL's
        return ProblemError(DISK_FULL, "the database has no room")
    return ProblemError(DATABASE_UNAVAILABLE, "try again", got=type(error).__name__)
