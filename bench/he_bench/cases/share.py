"""A key holder answers one manifest of `clients` updates: it sums their key sections and releases its share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from he_bench.cases import Workload
from he_bench.results import Point
from he_bench.updates import random_update
from he_bench.world import World

HOLDER = 0


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    world = World(point.profile, point.parameters, point.clients)
    task = world.task
    update = await world.update(await world.encryptor(), random_update(point.parameters))
    header, body = update.header, update.sections[task.section("key").name]
    share_maker = world.share_maker(HOLDER)

    async def run() -> dict[str, float]:
        total = share_maker.begin()
        for _ in range(point.clients):
            total.add(header, body)
        for _ in total.release(bytes(32), 0):
            pass
        return {}

    released = len(task.sharing.subshares_of(HOLDER)) * task.scheme.share_layout(task.length).size
    yield Workload(run, work=point.parameters * point.clients, traffic=released)
