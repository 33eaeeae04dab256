"""The client that is killed: it ends with nothing unsent, however long a round takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from he_client import HushSumClient
from he_client.spool import HEAD, EncryptedUpdate
from he_protocol.privacy.quantise import Integers
from tests.crash.submitter import COORDINATES, STOP, Coordinates, holding, spool_of, submit_until_stopped, unsent
from tests.support.service import TASK, Service

TRIES_SECONDS = 1.0
"""Time for several tries."""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A round of this one is closed by its second client, or after a minute."""
    root = tmp_path / "world"
    await Service.provision(root, "kahe", "kahe-30")
    async with Service(root) as service:
        yield service


async def seal(client: HushSumClient, service: Service) -> EncryptedUpdate:
    def zeros(start: int, stop: int) -> Integers:
        return np.zeros(stop - start, dtype=np.int64)

    return await client.encrypt(service.task, zeros, base_version=0)


async def test_it_does_not_end_before_the_next_round_took_what_waits(service: Service) -> None:
    """It has an update in the open round, and sealed another one in an earlier life."""
    folder = service.root / "client-01"
    spool, coordinates = spool_of(folder, service.task.id), Coordinates(folder / COORDINATES)
    async with service.client(1) as first, service.client(2) as second:
        coordinates.reserve()
        await first.upload(service.task, await seal(first, service))
        coordinates.settle(holding(spool, HEAD))
        coordinates.reserve()
        waiting = await seal(first, service)
        (folder / STOP).touch()
        life = asyncio.create_task(submit_until_stopped(service.url, folder, TASK, 0, 1))
        ended, _ = await asyncio.wait({life}, timeout=TRIES_SECONDS)
        assert not ended
        assert unsent(spool) == {waiting.update_id}
        await second.upload(service.task, await seal(second, service))
        await life
    assert unsent(spool) == set()
    assert set(Coordinates(folder / COORDINATES).of) == holding(spool, HEAD)
