"""The server's world, as the server's own tests have it."""

from collections.abc import Iterator

import pytest
import structlog

from tests.server.conftest import (  # noqa: F401
    database,
    empty_world,
    postgres_database,
    settings,
    sqlite_template,
    world,
)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """A command configures the log for the standard output of its own test."""
    yield
    structlog.reset_defaults()
