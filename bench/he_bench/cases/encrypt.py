"""A client encrypts one update: from float32 to sections, which are discarded as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from he_bench.cases import Workload
from he_bench.results import Point
from he_bench.updates import random_update
from he_bench.world import World, new_update_id
from he_client.quantise import UpdateQuantiser
from he_protocol import frames


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    async with encrypting(World(point.profile, point.parameters, point.clients)) as workload:
        yield workload


@asynccontextmanager
async def encrypting(world: World) -> AsyncIterator[Workload]:
    """Encrypt random updates for a world's task."""
    encryptor, update = await world.encryptor(), random_update(world.parameters)
    _, head = world.sign(1, new_update_id(), {section.name: bytes(32) for section in world.task.body})

    async def run() -> dict[str, float]:
        await encryptor.encrypt(
            new_update_id(), UpdateQuantiser(world.task, update, None).block, lambda name, data: None
        )
        return {}

    traffic = len(frames.start(head)) + sum(section.size for section in world.task.body)
    yield Workload(run, work=world.parameters, traffic=traffic)
