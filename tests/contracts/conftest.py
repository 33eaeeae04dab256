"""A real server for what has a server behind it."""

from tests.server.conftest import database, empty_world, settings, sqlite_template, world

__all__ = ["database", "empty_world", "settings", "sqlite_template", "world"]
