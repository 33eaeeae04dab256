"""`clients` updates are sent to a server process until all are acknowledged, so durable.

In turn the same bytes go to `he_bench.file_only`, which only writes them to files: stage "file-only". The
ratio of the two is what checking, hashing, syncing and recording cost.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from he_bench.cases import Workload
from he_bench.deployment import deployed
from he_bench.results import Point
from he_bench.timing import MOST_REPETITIONS
from he_bench.updates import random_update
from he_bench.world import World, new_update_id
from he_party.http_transport import HttpTransport
from he_protocol import frames, paths

AT_ONCE = 8
"""Uploads under way at once."""


@asynccontextmanager
async def prepare(point: Point) -> AsyncIterator[Workload]:
    # One client sends one update to a round, and no round may close here: every repetition has clients of its own.
    world = World(point.profile, point.parameters, point.clients * (MOST_REPETITIONS + 2))
    task = world.task
    update = await world.update(await world.encryptor(), random_update(point.parameters))
    body, digests, numbers = list(update.sections.values()), update.digests, count(1)
    with tempfile.TemporaryDirectory(prefix="he-bench-") as folder:
        async with deployed(Path(folder), world) as deployment:
            (url,) = await deployment.start_servers()
            file_only_url = await deployment.start_file_only()

            async def send(number: int) -> None:
                header, head = world.sign(number, new_update_id(), digests)
                path = paths.update_path(task.id, header.update_id.hex())
                async with HttpTransport(url, world.client(number)) as transport:
                    await transport.put_frame(path, head, body, task.config.server.name)

            async def send_file_only(number: int) -> None:
                async with HttpTransport(file_only_url, world.client(number)) as transport:
                    await transport.request("PUT", "/", pieces=[frames.start(update.head), *body])

            async def run() -> dict[str, float]:
                batch = [next(numbers) for _ in range(point.clients)]
                for number in batch:
                    world.client(number)
                file_only = await _seconds(send_file_only, batch)
                return {"file-only": file_only, "server": await _seconds(send, batch)}

            yield Workload(run, point.parameters * point.clients, update.size, deployment.server_pids, timed="server")


async def _seconds(send: Callable[[int], Awaitable[None]], batch: list[int]) -> float:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await send(number)

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in batch))
    return time.perf_counter() - started
