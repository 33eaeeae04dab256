"""Throw-away databases on a PostgreSQL server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg  # type: ignore[import-untyped]

from tests.server.conftest import postgres_dsn


@contextmanager
def new_database() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database, which is dropped afterwards."""
    dsn, name = postgres_dsn(), f"hushsum_{secrets.token_hex(6)}"
    asyncio.run(_execute(dsn, f'CREATE DATABASE "{name}"'))
    try:
        yield dsn.rsplit("/", 1)[0].replace("postgresql://", "postgresql+asyncpg://") + f"/{name}"
    finally:
        asyncio.run(_execute(dsn, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(dsn: str, command: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(command)
    finally:
        await connection.close()
