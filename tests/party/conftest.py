"""A service for every test; see `tests.support.fixtures`."""

from __future__ import annotations

from tests.support.fixtures import (  # noqa: F401
    closed_port,
    proxy,
    service,
    silent,
    template,
    world,
)
