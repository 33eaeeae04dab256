"""A fresh database and server for every test; PostgreSQL where a test asks for both."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import structlog
from sqlalchemy import delete

from he_migrations.run import upgrade
from he_party.keyfile import KeyRecord, write_private
from he_protocol.identity.jws import SigningKey, jwk_x
from he_server.services import submit
from he_server.services.context import open_server
from he_server.settings import Settings
from he_server.store.address import Address
from he_server.store.engine import make_engine
from he_server.store.schema import installation, metadata
from he_testing.clocks import FakeClock

from .world import START, World

POSTGRES = "HUSHSUM_TEST_POSTGRES"
"""Environment: asyncpg DSN of a server where databases may be created."""


def postgres_dsn() -> str:
    given = os.environ.get(POSTGRES)
    if given:
        return given
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", 5432)):
            pytest.skip("no PostgreSQL on 127.0.0.1:5432")
    return "postgresql://postgres@127.0.0.1:5432/test"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Commands configure the process's log for their own standard error, which ends with them."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "server.db"
    asyncio.run(upgrade("server", Address.of_file(path).url))
    return path


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    """URL of a migrated throw-away database; tests empty it before they use it."""
    dsn, name = postgres_dsn(), f"hushsum_{secrets.token_hex(6)}"
    _run(_execute(dsn, f'CREATE DATABASE "{name}"'))
    try:
        url = dsn.rsplit("/", 1)[0].replace("postgresql://", "postgresql+asyncpg://") + f"/{name}"
        _run(upgrade("server", url))
        yield url
    finally:
        _run(_execute(dsn, f'DROP DATABASE "{name}" WITH (FORCE)'))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also when a test's loop is running in this thread."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def _execute(dsn: str, command: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(command)
    await connection.close()


@pytest.fixture
async def database(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[str]:
    """URL of a migrated database; "sqlite" unless parametrised."""
    if getattr(request, "param", "sqlite") == "sqlite":
        path = tmp_path / "server.db"
        shutil.copy(sqlite_template, path)
        yield f"sqlite:///{path}"
        return
    url = request.getfixturevalue("postgres_database")
    engine = make_engine(Address.read(url))
    async with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):  # TRUNCATE makes every table's files anew: ten times as long
            if table is not installation:
                await connection.execute(delete(table))
    await engine.dispose()
    yield url


@pytest.fixture
def settings(tmp_path: Path, database: str) -> Settings:
    key = SigningKey.generate()
    write_private(tmp_path / "server.key", KeyRecord("aggregator", key.public, key.private))
    return Settings(data_dir=tmp_path, database_url=database, drain_seconds=5.0, poll_seconds=0.01)


@pytest.fixture
async def empty_world(settings: Settings) -> AsyncIterator[World]:
    """A running server without a task."""
    authority = SigningKey.generate()
    (settings.data_dir / "authority.pub").write_text(jwk_x(authority.public))
    world = World(authority, settings.read_key(), FakeClock(START))
    await world.start(open_server(settings, world.clock))
    yield world
    await world.stop()


@pytest.fixture
async def world(empty_world: World) -> World:
    """A running server with one task: 2-of-3 holders, rounds of 2 to 3 clients."""
    await empty_world.add_task()
    return empty_world


both = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


STEP_BY_STEP = {"test_crash.py", "test_folding.py", "test_refused_updates.py"}
"""Tests in which one step follows the other: the size of an update has nothing to do with the kind of database.
`make test` has each size and each database, and `make test-long` has large updates on PostgreSQL too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        both = (chosen.get("database"), chosen.get("both_sizes")) == ("postgres", "own blobs")
        if both and item.path.parent == Path(__file__).parent and item.path.name in STEP_BY_STEP:
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=["shared blobs", "own blobs"])
def both_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates as small ones, which share blobs, and as large ones, which are written as they arrive."""
    if request.param == "own blobs":
        monkeypatch.setattr(submit, "SHARED_BLOB_BYTES", 0)
