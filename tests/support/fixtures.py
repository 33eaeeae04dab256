"""Fixtures of the tests of clients and of what parties share: a service for every test, copied from one that was
provisioned once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.parties import World
from tests.support.proxy import Proxy
from tests.support.schemes import MOSTLY_KAHE
from tests.support.service import Service, copy


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """The server's log goes to standard output, which here belongs to the commands under test."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", params=MOSTLY_KAHE)
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server, three clients, three key holders, one task: everything on disk, nothing running."""
    root = tmp_path_factory.mktemp("template") / "world"
    asyncio.run(Service.provision(root, *request.param))
    return root


@pytest.fixture
async def service(template: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(copy(template, tmp_path / "world")) as service:
        yield service


@pytest.fixture
async def proxy(service: Service) -> AsyncIterator[Proxy]:
    """In front of the service."""
    async with Proxy(service.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def world() -> World:
    """Parties and a task in memory, for what needs no server."""
    return World()


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
