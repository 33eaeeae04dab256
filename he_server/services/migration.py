"""Bringing the database to this program's schema."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from he_migrations.run import MigrationError, upgrade
from he_party.files import close_database, private_directory
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS, DATABASE_UNAVAILABLE
from he_server.services.installation import adopt_database, check_database
from he_server.settings import Settings
from he_server.store.engine import translated


async def migrate(settings: Settings) -> None:
    """Bring the database of this data directory to the newest schema. Raises `database-unavailable` or `bad-settings`,
    the latter before anything is made where the data directory belongs to another database."""
    try:
        private_directory(settings.data_dir)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"data_dir cannot be used: {error}") from None
    await check_database(settings)
    try:
        async with translated():
            if (file := settings.database.file) is not None:
                close_database(file)
            await upgrade("server", settings.database.url, settings.database.options)
    except (MigrationError, DBAPIError) as error:  # for one, a schema newer than this program
        raise ProblemError(DATABASE_UNAVAILABLE, f"the schema cannot be upgraded: {error}") from None
    except (SQLAlchemyError, ImportError) as error:
        raise ProblemError(BAD_SETTINGS, f"database_url: {error}") from None
    await adopt_database(settings)
