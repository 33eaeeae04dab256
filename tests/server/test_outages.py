"""The database goes away and comes back: nothing acknowledged is lost or counted twice, and nobody restarts a thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from he_protocol import problems
from he_server.settings import Settings

from .gate import Gate
from .world import Person, Upload, World

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("database", ["postgres"], indirect=True),
]
CLIENTS = 48
"""More than the messages that one upload sends to the database."""
PINGS = 2
"""The first messages on a pooled connection only ask whether it lives: cut there, another is taken in silence."""


@pytest.fixture
async def gate(database: str) -> AsyncIterator[Gate]:
    async with Gate(database) as gate:
        yield gate


@pytest.fixture
def settings(settings: Settings, gate: Gate) -> Settings:
    return settings.model_copy(update={"database_url": gate.url})


async def _until_accepted(world: World, client: Person, upload: Upload) -> list[int]:
    """Send the same update until it is acknowledged; the statuses."""
    statuses: list[int] = []
    while not statuses or statuses[-1] not in {200, 201}:
        assert len(statuses) < 20
        answer = await world.put(client, upload)
        statuses.append(answer.status)
        if answer.status not in {200, 201}:
            assert await world.problem(answer) == problems.DATABASE_UNAVAILABLE
    return statuses


async def test_a_connection_cut_at_every_message(empty_world: World, gate: Gate) -> None:
    world = empty_world
    await world.add_task(max_clients=CLIENTS)
    uploads, tries = [], []
    for messages in range(CLIENTS):
        client = world.person(f"client-{messages}", "client")
        uploads.append(world.upload(client))
        gate.after = messages
        tries.append(await _until_accepted(world, client, uploads[-1]))
        gate.after = None
    assert sum(statuses[0] == 503 for statuses in tries) > 5
    assert tries[-1] == [201]  # the cuts went as far as an upload goes
    assert (await world.round(1)).updates == CLIENTS
    await world.work()
    _, manifest = await world.manifest(1)
    assert {entry.update_id for entry in manifest.updates} == {upload.id for upload in uploads}


async def test_a_worker_whose_connection_is_cut_at_every_message(empty_world: World, gate: Gate) -> None:
    world = empty_world
    await world.add_task()
    await world.fill(3, 200)
    cuts, messages = 0, PINGS
    async with asyncio.timeout(60):
        while not (await world.round(1)).opening:
            gate.after = messages
            outcome = (await asyncio.gather(world.worker.step(), return_exceptions=True))[0]
            if gate.after is None:
                cuts, messages = cuts + 1, messages + 1
            else:  # a whole step without a cut; now the next kind of step
                messages = PINGS
            gate.after = None
            assert isinstance(outcome, bool) or getattr(outcome, "problem", None) is problems.DATABASE_UNAVAILABLE
            world.clock.now += world.server.settings.lease_seconds
    assert cuts > 3
    await world.open(1)
    published = await world.round(1)
    assert (published.state, published.updates) == ("published", 3)


async def test_readiness_tells_and_the_server_recovers_by_itself(world: World, gate: Gate) -> None:
    (first,) = await world.fill(1)
    gate.shut()
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    async with asyncio.timeout(20):
        assert await world.problem(await world.put(ada, upload)) == problems.DATABASE_UNAVAILABLE
        assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.DATABASE_UNAVAILABLE
        assert (await world.call(None, "GET", "/healthz")).status == 200
    await gate.open()
    assert (await world.call(None, "GET", "/readyz")).status == 200
    assert (await world.put(ada, upload)).status == 201
    (last,) = await world.fill(1, first=1)
    await world.work()
    _, manifest = await world.manifest(1)
    assert {entry.update_id for entry in manifest.updates} == {first.id, upload.id, last.id}
