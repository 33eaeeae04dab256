"""Everything that comes from outside of the program, replaced: time, randomness, threads, databases, disk, network."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web_app
from sqlalchemy import Engine, make_url
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import LRUCache, await_only

from he_client.quantise import secret_words
from he_client.schemes.kahe import KaheEncryptor
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.kahe import SEED_BYTES
from he_server.services.backpressure import AdmissionController

from . import machine
from .machine import MACHINE, VirtualLoop, alive, point
from .world import World

COMPILED = 1000
"""Statements whose SQL is kept, for each kind of database: more than there are."""


class Cursor(sqlite3.Cursor):
    """Has all rows as soon as a statement is executed, like the cursors that SQLAlchemy puts around async drivers.

    A statement that begins or makes a change is a point; in one that only reads, a crash is like one before.
    """

    _rows: deque[Any]

    def execute(self, statement: str, parameters: Any = ()) -> Cursor:
        self._rows = deque()
        if "busy_timeout" not in statement:  # `VirtualLoop.work` waits
            call = partial(self._execute, super().execute, statement, parameters)
            _turn(call, alive if statement.startswith(("SELECT", "PRAGMA")) else point)
        return self

    def executemany(self, statement: str, parameters: Any) -> Cursor:
        self._rows = deque()
        _turn(partial(super().executemany, statement, parameters), point)
        return self

    def _execute(self, execute: Callable[..., object], statement: str, parameters: Any) -> None:
        execute(statement, parameters)
        if self.description:
            self._rows.extend(super().fetchall())

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        rows, self._rows = list(self._rows), deque()
        return rows

    async def _async_soft_close(self) -> None:
        """Nothing is left to read."""


class Database(sqlite3.Connection):
    """Stands in for an aiosqlite connection: no thread, and every statement is taken by the loop at its time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        here = MACHINE.get()
        assert here is not None
        here.databases.append(self)

    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)

    def run_async(self, work: Callable[[Database], object]) -> None:
        """What SQLAlchemy's adapter does with the connection of an async driver."""
        work(self)

    def execute(self, statement: str, parameters: Any = ()) -> Cursor:
        cursor: Cursor = self.cursor()
        return cursor.execute(statement, parameters)

    def commit(self) -> None:
        _turn(super().commit, partial(point, commits=True))

    def rollback(self) -> None:
        alive()
        super().rollback()

    def close(self) -> None:
        """Also ends the transaction: SQLite would wait until nobody refers to a statement of it any more."""
        with suppress(sqlite3.Error):
            super().rollback()
        super().close()


def _turn(call: Callable[[], object], before: Callable[[], None]) -> None:
    """Have the loop call it; the caller is a greenlet of SQLAlchemy's, which waits."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    future: asyncio.Future[object] = loop.create_future()
    loop.work(future, call, before)
    await_only(future)


class Dialect(SQLiteDialect_pysqlite):
    is_async = True
    has_terminate = True  # what runs on dead machines leaves connections open, without a warning
    supports_statement_cache = True


@cache
def _shared(_kind: str) -> tuple[Dialect, LRUCache[Any, Any]]:
    """For all databases of a kind, so that a process compiles each statement once."""
    return Dialect(dbapi=sqlite3), LRUCache(COMPILED)


def _make_engine(url: str) -> AsyncEngine:
    """Stands in for `create_async_engine`."""
    parsed = make_url(url)
    assert parsed.database is not None
    dialect, compiled = _shared(Path(parsed.database).name)
    options = {"factory": Database, "timeout": 0, "cached_statements": COMPILED}
    pool = AsyncAdaptedQueuePool(partial(sqlite3.connect, parsed.database, **options), dialect=dialect)
    engine = Engine(pool, dialect, parsed)
    engine._compiled_cache = compiled
    return AsyncEngine(engine)


@contextmanager
def simulated(world: World, seed: int, *, streamed: bool) -> Iterator[None]:
    """Replace it all for one schedule. streamed: updates go to disk while they arrive, as large ones
    do, not from memory and together.
    """
    rng, loop, secrets = random.Random(seed), world.loop, world.record.secrets

    def token_bytes(size: int = 32) -> bytes:
        return rng.randbytes(size)

    def words(count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        drawn = secret_words(count)
        if count == SEED_BYTES // 8:
            secrets.append(drawn.tobytes())
        return drawn

    def shares(self: KaheEncryptor, update_id: bytes, secret: Integers) -> bytes:
        secrets.extend([secret.astype(kind).tobytes() for kind in ("<i4", "<i8")])
        return world.spoil(self._client, update_id, share(self, update_id, secret))

    share = KaheEncryptor._shares
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", machine.fsync)
        patch.setattr("os.replace", machine.replace)
        patch.setattr("os.unlink", machine.unlink)
        patch.setattr("os.urandom", token_bytes)
        patch.setattr("secrets.token_bytes", token_bytes)
        patch.setattr(time, "time", partial(machine.clock, loop))
        patch.setattr(time, "monotonic", loop.time)
        patch.setattr("random._urandom", token_bytes)
        patch.setattr(AdmissionController.__init__, "__defaults__", (loop.time,))
        patch.setattr("random.uniform", lambda low, high: low + (high - low) * rng.random())
        patch.setattr("he_holder.ledger.upgrade", _migrated)
        patch.setattr("he_holder.ledger.create_async_engine", _make_engine)
        patch.setattr("he_server.store.engine.create_async_engine", _make_engine)
        patch.setattr("he_server.http.openapi.document", lambda *_: b"{}")
        patch.setattr(KaheEncryptor.__init__, "__kwdefaults__", {"threads": 1, "words": words})
        patch.setattr(KaheEncryptor, "_shares", shares)
        if streamed:
            patch.setattr("he_server.services.submit.SHARED_BLOB_BYTES", 0)
        patch.setattr(aiohttp, "TCPConnector", world.network.connector)
        # aiohttp's own lives as long as the process, and with it the world of every schedule.
        patch.setattr(web_app, "_cached_build_middleware", cache(web_app._build_middlewares))
        yield


async def _migrated(*_: object) -> None:
    """Ledgers come migrated."""
