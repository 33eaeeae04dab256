"""A client encrypts one update as in case `seal`, and adds its share of client-level noise to every integer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from he_bench.cases import Workload
from he_bench.cases.encrypt import encrypting
from he_bench.results import Point
from he_bench.world import World
from he_protocol.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan("client", clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, epsilon_budget=1e6)


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    async with encrypting(World(point.profile, point.parameters, point.clients, privacy=PLAN)) as workload:
        yield workload
