"""The server adds `clients` packed updates to a fresh sum, row block by row block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from he_bench.cases import Workload
from he_bench.results import Point
from he_bench.sums import fold_times, random_vector, sum_layout
from he_bench.world import World


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    layout = sum_layout(World(point.profile, point.parameters, point.clients).task)
    packed = random_vector(layout)

    async def run() -> dict[str, float]:
        fold_times(packed, layout, point.clients)
        return {}

    yield Workload(run, work=point.parameters * point.clients, traffic=layout.size)
