"""The server's schema comes from migrations only, and is the one that the store expects."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError

from he_migrations.run import downgrade, upgrade
from he_server.store.engine import make_engine, sqlite_url
from he_server.store.schema import metadata

from ..server.conftest import postgres_dsn


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "100% new.db")
        return
    dsn, name = postgres_dsn(), f"hushsum_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(dsn)
    await admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield dsn.rsplit("/", 1)[0].replace("postgresql://", "postgresql+asyncpg://") + f"/{name}"
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


async def test_the_migrated_schema_is_the_stores(empty: str) -> None:
    await upgrade("server", empty)
    engine = make_engine(empty)
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
    await engine.dispose()


async def test_migrating_twice_and_together_is_harmless(empty: str) -> None:
    await asyncio.gather(upgrade("server", empty), upgrade("server", empty))
    await upgrade("server", empty)


async def test_down_and_up_again(empty: str) -> None:
    await upgrade("server", empty)
    await downgrade("server", empty, "base")
    engine = make_engine(empty)
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == ["alembic_version"]
    await engine.dispose()
    await upgrade("server", empty)


async def test_the_database_itself_refuses_a_second_open_round(empty: str) -> None:
    await upgrade("server", empty)
    engine = make_engine(empty)
    columns = (
        "task_hash, number, state, updates, opened_at, deadline, closed_at, opening_deadline, manifest, manifest_hash,"
        " version, failure_type, failure_detail, seconds, tried, lease_token, lease_until"
    )
    add = f"INSERT INTO rounds ({columns}) VALUES ('a', :number, :state, 0,0,0,0,0,'','',0,'','','',0,'',0)"
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO tasks VALUES ('a', 'a', 'a', 0, 0, 0)"))
        await connection.execute(text(add), {"number": 1, "state": "failed"})
        await connection.execute(text(add), {"number": 2, "state": "open"})
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(text(add), {"number": 3, "state": "open"})
    await engine.dispose()
