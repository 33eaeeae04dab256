"""Bring a database to the newest schema of one tree, from an installed package or a checkout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, inspect, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from alembic.config import Config

TREES = Path(__file__).parent
NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
_ONE_AT_A_TIME = threading.Lock()  # Alembic keeps its context in module globals


class MigrationError(Exception):
    """The schema cannot be brought there from what it is: for one, it is newer than this program."""


def configuration(tree: str) -> Config:
    """Alembic's configuration for `migrations/<tree>`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(TREES / tree).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def upgrade(
    tree: str, url: URL | str, options: Mapping[str, object] = NO_OPTIONS, revision: str = "head"
) -> None:
    """Run every migration that the database does not have yet; safe to call from a running loop.

    `url` is SQLAlchemy's, of an async driver, and `options` are the driver's. A file is given as a `URL`: in a text
    some characters of its name would mean something. Raises `MigrationError`, and what the driver raises when the
    database cannot be reached.
    """
    # Importing Alembic takes a third of a second, and nearly every start of a program finds the schema as it should be.
    if revision == "head" and await _revision(make_url(url), options) == newest(tree):
        return
    await asyncio.to_thread(_run, "upgrade", tree, make_url(url), options, revision)


async def downgrade(tree: str, url: URL | str, revision: str) -> None:
    """Undo migrations down to `revision` ("base" for all of them)."""
    await asyncio.to_thread(_run, "downgrade", tree, make_url(url), NO_OPTIONS, revision)


def newest(tree: str) -> str:
    """The revision that `upgrade` brings a database to. Files of migrations are named by revision, in order."""
    return max(file.name for file in (TREES / tree / "versions").glob("[0-9]*.py")).partition("_")[0]


async def _revision(url: URL, options: Mapping[str, object]) -> str | None:
    """The database's; None for one without a schema."""

    def read(connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return revision

    engine = create_async_engine(url, poolclass=NullPool, connect_args=dict(options))
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(read)
    finally:
        await engine.dispose()


def _run(work: str, tree: str, url: URL, options: Mapping[str, object], revision: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    from he_migrations import environment

    config = configuration(tree)
    config.attributes |= {environment.DATABASE: url, environment.OPTIONS: options}
    try:
        with _ONE_AT_A_TIME:
            getattr(command, work)(config, revision)
    except CommandError as error:
        raise MigrationError(str(error)) from None
