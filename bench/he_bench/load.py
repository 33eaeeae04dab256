"""Many clients at once: `he-bench load`.

Every client sends one encrypted update over a connection of its own, and retries after a 429. The
same bytes go to `he_bench.file_only` in the same run: the ratio is what the server's promises cost. An encrypted body
is made once and signed by every client: the server cannot tell, and the machine's cores are the servers'.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import asyncpg  # type: ignore[import-untyped]
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from he_bench.deployment import Deployment, deployed
from he_bench.disk import peak_disk
from he_bench.memory import peak_memory
from he_bench.results import Load, LoadPoint, Spread
from he_bench.updates import random_update
from he_bench.world import Update, World, new_update_id
from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.identity import Identity
from he_party.transport import Transport
from he_protocol import documents, frames, paths
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND

PATIENCE = RetryPolicy(first=0.1, longest=2.0, give_up=1800.0)
FILES_PER_CLIENT = 2
SPARE_FILES = 1024


@dataclass(frozen=True)
class Upload:
    """One client's signed update, ready to send."""

    identity: Identity
    update_id: str
    head: bytes


async def measure_load(point: LoadPoint, postgres: str) -> Load:
    """Run one load on SQLite, or on a new database of a PostgreSQL server."""
    if not postgres:
        return await _measure(point)
    name = f"he_bench_{secrets.token_hex(8)}"
    admin = await asyncpg.connect(postgres)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            url = make_url(postgres).set(drivername="postgresql+asyncpg", database=name)
            shown = url.render_as_string(hide_password=False)
            return await _measure(msgspec.structs.replace(point, database=shown))
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def _measure(point: LoadPoint) -> Load:
    """Storms between runs of the file-only handler. Raises the first refusal that is not "come again"."""
    allow_files(point.clients * FILES_PER_CLIENT + SPARE_FILES)
    senders = point.clients * point.bursts
    world = World(point.profile, point.parameters, senders + 1)  # no round may fill up
    update = await world.update(await world.encryptor(), random_update(point.parameters))
    uploads = [_upload(world, update, number) for number in range(senders)]
    body = list(update.sections.values())
    with tempfile.TemporaryDirectory(prefix="he-bench-") as folder:
        async with deployed(Path(folder), world, point.database) as deployment:
            file_only_url = await deployment.start_file_only()
            urls = await deployment.start_servers(point.processes)
            audience = world.task.config.server.name

            async def to_server(upload: Upload, transport: Transport) -> None:
                path = paths.update_path(world.task.id, upload.update_id)
                await transport.put_frame(path, upload.head, body, audience)

            async def to_file_only(_: Upload, transport: Transport) -> None:
                await transport.request("PUT", "/", audience=audience, pieces=[frames.start(update.head), *body])

            seconds, waited, disk = list[float](), list[float](), 0
            file_only = [await _burst(uploads[: point.clients], [file_only_url], to_file_only)]
            for first in range(0, senders, point.clients):
                burst = uploads[first : first + point.clients]
                async with peak_disk(deployment.data_dir) as watch:
                    waited += (found := await _burst(burst, urls, to_server))
                seconds.append(max(found))
                disk = max(disk, watch.peak)
                file_only.append(await _burst(burst, [file_only_url], to_file_only))
            return Load(
                point,
                seconds=Spread.of(seconds),
                file_only=Spread.of([max(found) for found in file_only]),
                traffic=update.size,
                acknowledged=quantiles(waited, n=100, method="inclusive"),
                told_to_wait=sum([await _told_to_wait(deployment, url) for url in urls]),
                peak_memory=peak_memory(deployment.server_pids()),
                peak_disk=disk,
                lost=await _lost(world, urls[0], uploads),
            )


def _upload(world: World, update: Update, number: int) -> Upload:
    header, head = world.sign(number, new_update_id(), update.digests)
    return Upload(world.client(number), header.update_id.hex(), head)


async def _burst(
    uploads: Sequence[Upload], urls: Sequence[str], send: Callable[[Upload, Transport], Awaitable[None]]
) -> list[float]:
    """All at once: seconds until each is acknowledged."""
    async with AsyncExitStack() as stack:
        transports = [
            await stack.enter_async_context(HttpTransport(urls[number % len(urls)], upload.identity, retry=PATIENCE))
            for number, upload in enumerate(uploads)
        ]
        started = time.perf_counter()

        async def one(upload: Upload, transport: Transport) -> float:
            await send(upload, transport)
            return time.perf_counter() - started

        return await asyncio.gather(*(one(*each) for each in zip(uploads, transports, strict=True)))


async def _told_to_wait(deployment: Deployment, url: str) -> int:
    """Answers of status 429 that a server counted."""
    async with HttpTransport(url, deployment.world.parties.server) as transport:
        text = (await transport.request("GET", "/metrics")).body.decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return int(sum(s.value for s in samples if s.name == "hushsum_requests_total" and s.labels.get("status") == "429"))


async def _lost(world: World, url: str, uploads: Sequence[Upload]) -> int:
    """Acknowledged updates that the server does not know."""
    lost = 0
    for upload in uploads:
        async with HttpTransport(url, upload.identity, retry=PATIENCE) as transport:
            path = paths.update_path(world.task.id, upload.update_id)
            try:
                await transport.document("GET", path, documents.UpdateStatus, audience=world.task.config.server.name)
            except ProblemError as refusal:
                if refusal.problem is not NOT_FOUND:
                    raise
                lost += 1
    return lost


def allow_files(wanted: int) -> None:
    """Raise the limit of open files for this process and those that it starts, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
