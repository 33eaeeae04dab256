"""The server opens the sum of `clients` updates from the folded sum section and a quorum's shares."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from he_bench.cases import Workload
from he_bench.results import Point
from he_bench.sums import fold_times, sum_layout
from he_bench.updates import random_update
from he_bench.world import World
from he_protocol.schemes.scheme import combine


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    world = World(point.profile, point.parameters, point.clients)
    task = world.task
    update = await world.update(await world.encryptor(), random_update(point.parameters))
    total = fold_times(update.sections[task.section("sum").name], sum_layout(task), point.clients)
    released = world.released(update, point.clients)
    del update

    async def run() -> dict[str, float]:
        started = time.perf_counter()
        combine(task.scheme, total, released, task.length, point.clients, task.epoch_id)
        return {"combine": time.perf_counter() - started}

    traffic = task.sharing.subshares * task.scheme.share_layout(task.length).size
    yield Workload(run, point.parameters, traffic, timed="combine")
