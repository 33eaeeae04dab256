"""Bring a database to the newest schema of one tree, from an installed package or a checkout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, make_url

from he_migrations import environment

TREES = Path(__file__).parent
NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
_ONE_AT_A_TIME = threading.Lock()  # Alembic keeps its context in module globals


def configuration(tree: str) -> Config:
    """Alembic's configuration for `migrations/<tree>`."""
    config = Config()
    config.set_main_option("script_location", str(TREES / tree).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


async def upgrade(
    tree: str, url: URL | str, options: Mapping[str, object] = NO_OPTIONS, revision: str = "head"
) -> None:
    """Run every migration that the database does not have yet; safe to call from a running loop.

    `url` is SQLAlchemy's, of an async driver, and `options` are the driver's. A file is given as a `URL`: in a text
    some characters of its name would mean something. Raises what the driver raises when the database cannot be reached.
    """
    await asyncio.to_thread(_locked, command.upgrade, tree, make_url(url), options, revision)


async def downgrade(tree: str, url: URL | str, revision: str) -> None:
    """Undo migrations down to `revision` ("base" for all of them)."""
    await asyncio.to_thread(_locked, command.downgrade, tree, make_url(url), NO_OPTIONS, revision)


def newest(tree: str) -> str:
    """The revision that `upgrade` brings a database to."""
    return str(ScriptDirectory.from_config(configuration(tree)).get_current_head())


def _locked(
    run: Callable[[Config, str], None], tree: str, url: URL, options: Mapping[str, object], revision: str
) -> None:
    config = configuration(tree)
    config.attributes |= {environment.DATABASE: url, environment.OPTIONS: options}
    with _ONE_AT_A_TIME:
        run(config, revision)
