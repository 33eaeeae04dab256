"""One deployment for many tests: each leaves it as it likes, the next finds it whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from he_client import HushSumClient
from tests.integration.processes import CLIENTS, Processes
from tests.support.schemes import MOSTLY_KAHE


@pytest.fixture(scope="session", params=MOSTLY_KAHE)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Server and four key holders on SQLite; 2 open once 3 have voted."""
    processes = Processes(tmp_path_factory.mktemp("deployment"), *request.param)
    try:
        processes.start()
        yield processes
    finally:
        processes.stop()


@pytest.fixture
def processes(deployment: Processes) -> Processes:
    """The deployment with everything running, whatever the last test did."""
    deployment.heal()
    return deployment


@pytest.fixture
async def clients(processes: Processes) -> AsyncIterator[list[HushSumClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(processes.client(number)) for number in range(1, CLIENTS + 1)]


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[2]
