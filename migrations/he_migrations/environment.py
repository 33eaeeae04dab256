"""What every tree's `env.py` does: run its migrations in one transaction.

Alembic executes a tree's `env.py` in a thread that has no event loop (see `run.py`): SQLite is
reached through the standard library there, PostgreSQL over asyncpg in a loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from alembic import context
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

DATABASE, OPTIONS = "hushsum_url", "hushsum_options"
_LOCK = 0x48555348  # any constant of this project: processes that start together migrate one after the other


def run() -> None:
    """Entry point of an `env.py`."""
    url: URL = context.config.attributes[DATABASE]
    if url.get_backend_name() == "sqlite":
        _run_sqlite(url.set(drivername="sqlite"))
    else:
        asyncio.run(_run(url, context.config.attributes[OPTIONS]))


def _run_sqlite(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        _migrate(connection)


async def _run(url: URL, options: Mapping[str, object]) -> None:
    engine = create_async_engine(url, poolclass=NullPool, connect_args=dict(options))
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
            await connection.commit()
    finally:
        await engine.dispose()


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite")
    with context.begin_transaction():
        context.run_migrations()
