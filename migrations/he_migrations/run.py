"""Bring a database to the newest schema of one tree, from an installed package or a checkout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from he_migrations.environment import URL

TREES = Path(__file__).parent
_ONE_AT_A_TIME = threading.Lock()  # Alembic keeps its context in module globals


def configuration(tree: str, url: str) -> Config:
    """Alembic's configuration for `migrations/<tree>`; `url` is an SQLAlchemy async URL."""
    config = Config()
    config.set_main_option("script_location", str(TREES / tree).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes[URL] = url
    return config


async def upgrade(tree: str, url: str, revision: str = "head") -> None:
    """Run every migration that the database does not have yet; safe to call from a running loop.

    Raises what the database driver raises when the database cannot be reached.
    """
    await asyncio.to_thread(_locked, command.upgrade, tree, url, revision)


async def downgrade(tree: str, url: str, revision: str) -> None:
    """Undo migrations down to `revision` ("base" for all of them)."""
    await asyncio.to_thread(_locked, command.downgrade, tree, url, revision)


def newest(tree: str) -> str:
    """The revision that `upgrade` brings a database to."""
    return str(ScriptDirectory.from_config(configuration(tree, "")).get_current_head())


def _locked(run: Callable[[Config, str], None], tree: str, url: str, revision: str) -> None:
    with _ONE_AT_A_TIME:
        run(configuration(tree, url), revision)
