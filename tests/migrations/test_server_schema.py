"""The server's schema comes from migrations only, and is the one that the store expects."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError

from he_migrations.run import configuration, downgrade, newest, upgrade
from he_server.store.address import Address
from he_server.store.engine import make_engine
from he_server.store.schema import metadata

from ..server.conftest import postgres_dsn


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Address]:
    """An empty database."""
    if request.param == "sqlite":
        yield Address.of_file(tmp_path / "100% new?#%20.db")
        return
    dsn, name = postgres_dsn(), f"hushsum_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(dsn)
    await admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield Address.read(dsn.rsplit("/", 1)[0] + f"/{name}")
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


async def test_the_migrated_schema_is_the_stores(empty: Address) -> None:
    await upgrade("server", empty.url)
    engine = make_engine(empty)
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
    await engine.dispose()


async def test_migrating_twice_and_together_is_harmless(empty: Address) -> None:
    await asyncio.gather(upgrade("server", empty.url), upgrade("server", empty.url))
    await upgrade("server", empty.url)


async def test_a_schema_as_it_should_be_is_left_alone(empty: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    await upgrade("server", empty.url)
    monkeypatch.setitem(sys.modules, "alembic", None)  # its import takes longer than all else that a start imports
    await upgrade("server", empty.url)
    with pytest.raises(ImportError):
        await upgrade("server", empty.url, revision="0001")


@pytest.mark.parametrize("tree", ["server", "ledger"])
def test_the_newest_revision_is_alembics_head(tree: str) -> None:
    assert newest(tree) == ScriptDirectory.from_config(configuration(tree)).get_current_head()


async def test_down_and_up_again(empty: Address) -> None:
    await upgrade("server", empty.url)
    await downgrade("server", empty.url, "base")
    engine = make_engine(empty)
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == ["alembic_version"]
    await engine.dispose()
    await upgrade("server", empty.url)


async def test_the_database_itself_refuses_a_second_open_round(empty: Address) -> None:
    await upgrade("server", empty.url)
    engine = make_engine(empty)
    columns = (
        "task_hash, number, state, updates, opened_at, deadline, closed_at, opening_deadline, manifest, manifest_hash,"
        " version, failure_type, failure_detail, seconds, tried, lease_token, lease_until"
    )
    add = f"INSERT INTO rounds ({columns}) VALUES ('a', :number, :state, 0,0,0,0,0,'','',0,'','','',0,'',0)"
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO tasks VALUES ('a', 'a', 'a', 0, 0, 0, 'open')"))
        await connection.execute(text(add), {"number": 1, "state": "failed"})
        await connection.execute(text(add), {"number": 2, "state": "open"})
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(text(add), {"number": 3, "state": "open"})
    await engine.dispose()
