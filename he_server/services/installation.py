"""A data directory and a database belong together: the rows of one are about the files of the other.

Whoever forgot `database_url` once would add tasks to a database that the server does not use, and a server that starts
so would sweep all files, of which the other database has no row.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from he_party.files import write_durably
from he_party.text import read_text
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.settings import Settings
from he_server.store.engine import Database, make_engine

ID_FILE = "database.id"
"""In the data directory: the id of its database."""


async def check_database(settings: Settings) -> None:
    """Nothing, or `bad-settings` where the data directory belongs to another database; also to none that is there."""
    kept = await asyncio.to_thread(_kept, settings.data_dir)
    if kept and kept != await _id(settings):
        raise ProblemError(
            BAD_SETTINGS,
            f"data_dir {settings.data_dir} belongs to another database than this one",
            expected=f"the database_url that it was first used with (or, if the database was replaced, no {ID_FILE})",
            got=settings.database.shown,
        )


async def adopt_database(settings: Settings) -> None:
    """From now on the data directory belongs to this database, if it belonged to none."""
    if not await asyncio.to_thread(_kept, settings.data_dir):
        text = f"{await _id(settings)}\n"
        await asyncio.to_thread(write_durably, settings.data_dir / ID_FILE, text.encode())


def _kept(data_dir: Path) -> str:
    path = data_dir / ID_FILE
    return read_text(path, BAD_SETTINGS).strip() if path.exists() else ""


async def _id(settings: Settings) -> str:
    """Of the database; "" where there is none yet."""
    address = settings.database
    if address.file is not None and not address.file.is_file():
        return ""
    database = Database(make_engine(address))
    try:
        return await database.id()
    finally:
        await database.close()
