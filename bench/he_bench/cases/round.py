"""A whole round: `clients` clients encrypt and upload, key holders judge and release, the server publishes a model.

Server and key holders are processes of their own; the clients share this one.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from he_bench.cases import Workload
from he_bench.deployment import deployed
from he_bench.results import Point
from he_bench.updates import random_update
from he_bench.world import TASK_NAME, World
from he_client.client import HushSumClient
from he_client.submission import Submission
from he_client.tensors import unflatten


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    world = World(point.profile, point.parameters, point.clients)
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="he-bench-")))
        deployment = await stack.enter_async_context(deployed(root, world))
        await asyncio.to_thread(deployment.start)
        clients = [
            await stack.enter_async_context(
                HushSumClient(deployment.url, world.client(number), state_dir=root / f"client-{number}")
            )
            for number in range(1, point.clients + 1)
        ]
        task = await clients[0].task(TASK_NAME)
        update = unflatten(task, random_update(point.parameters))
        sizes: list[int] = []
        version = 0

        async def run() -> dict[str, float]:
            nonlocal version
            sent = await asyncio.gather(*(client.submit(task, update, base_version=version) for client in clients))
            version = await clients[0].wait(task, sent[0])
            sizes[:] = [submission.bytes for submission in sent]
            status = await clients[0].round(task, sent[0].round)
            return _stages(sent) | status.seconds

        await run()
        yield Workload(run, point.parameters * point.clients, sizes[0], deployment.server_pids)


def _stages(sent: list[Submission]) -> dict[str, float]:
    """The slowest client's seconds of each stage: with all clients in one process they wait for each other."""
    return {name: max(submission.seconds[name] for submission in sent) for name in sent[0].seconds}
