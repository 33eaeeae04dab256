"""Anonymous abuse of every kind at once, beside honest clients, against a real server.

`python -m tests.security.attacks.storm`.
Honest clients upload, think, and upload again: first undisturbed, then in the storm, over connections that are new
each time. The storm comes from the same address as they do, which is the worst place for it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from he_bench.deployment import Deployment, deployed
from he_bench.load import Upload, allow_files
from he_bench.updates import random_update
from he_bench.world import World, new_update_id
from he_party.http_transport import HttpTransport, RetryPolicy
from he_protocol import documents, paths
from he_server.blobs.tensor_file import model_file
from tests.security.attacks.abuse import Abuse

PROFILE, PARAMETERS = "kahe-30", 20_000
PATIENCE = RetryPolicy(first=0.1, longest=1.0, give_up=60.0)
STRANGERS_PLACES = ("blobs/models", "blobs/partial", "uploads", "blobs/board")
"""Folders in which honest updates leave nothing."""
LEAST_RATE, MOST_MEMORY = 0.8, 500 * 1000 * 1000


@dataclass(frozen=True)
class Outcome:
    """Rates in uploads per second, the rest in bytes."""

    before: float
    during: float
    memory: int
    disk_before: int
    disk_after: int
    lines: int

    @property
    def kept(self) -> float:
        """The part of the undisturbed rate that honest clients keep."""
        return self.during / self.before

    def __str__(self) -> str:
        return (
            f"honest uploads {self.before:.1f}/s undisturbed, {self.during:.1f}/s in the storm ({self.kept:.0%}); "
            f"server's peak memory {self.memory / 1e6:.0f} MB; "
            f"disk outside honest updates {self.disk_before} B before, {self.disk_after} B after; "
            f"{self.lines} lines of log in the storm"
        )


class Honest:
    """So many clients at once, each with a new identity for every upload: a round takes one update of a client."""

    def __init__(self, uploads: Iterator[Upload], body: Sequence[bytes], url: str, world: World, think: float) -> None:
        self._uploads = uploads
        self._body = body
        self._url = url
        self._task = world.task
        self._think = think
        self.done = 0

    async def rate(self, clients: int, seconds: float) -> float:
        """Acknowledged uploads per second."""
        self.done, started = 0, time.monotonic()
        tasks = [asyncio.create_task(self._client(number / clients)) for number in range(clients)]
        await asyncio.sleep(seconds)
        found = self.done / (time.monotonic() - started)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return found

    async def _client(self, phase: float) -> None:
        await asyncio.sleep(phase * self._think)
        while True:
            upload = next(self._uploads)
            async with HttpTransport(self._url, upload.identity, retry=PATIENCE) as transport:
                path = paths.update_path(self._task.id, upload.update_id)
                await transport.put_frame(path, upload.head, self._body, self._task.config.server.name)
            self.done += 1
            await asyncio.sleep(self._think)


async def storm(clients: int, seconds: float, *, scale: float = 1.0, think: float = 4.0) -> Outcome:
    """Measure one storm of so many seconds."""
    allow_files(8192)
    count = int(3 * clients * (seconds / think + 2))
    world = World(PROFILE, PARAMETERS, count + 2)
    update = await world.update(await world.encryptor(), random_update(PARAMETERS))

    def uploads() -> Iterator[Upload]:
        for number in range(1, count):
            header, head = world.sign(number, new_update_id(), update.digests)
            yield Upload(world.client(number), header.update_id.hex(), head)

    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        async with deployed(Path(folder), world) as deployment:
            (url,) = await deployment.start_servers()
            honest = Honest(uploads(), list(update.sections.values()), url, world, think)
            await honest.rate(clients, min(2.0, seconds))  # everything is loaded and compiled
            before = await honest.rate(clients, seconds)
            disk_before, log_before = _disk(deployment), _lines(deployment)
            async with _abuse(Path(folder), await _abuse_of(world, url, scale)):
                await asyncio.sleep(min(3.0, seconds))
                during = await honest.rate(clients, seconds)
                lines = _lines(deployment) - log_before
            await asyncio.sleep(1.0)
            memory = sum(_peak_memory(pid) for pid in deployment.server_pids())
            return Outcome(before, during, memory, disk_before, _disk(deployment), lines)


async def _abuse_of(world: World, url: str, scale: float) -> Abuse:
    """What strangers know of the server, and one client's key."""
    async with aiohttp.ClientSession() as session, session.get(url + paths.TASKS) as answer:
        listed = msgspec.json.decode(await answer.read(), type=documents.TaskList)
    bad = world.client(0)
    return Abuse(
        port=urlsplit(url).port or 0,
        task=world.task.id,
        token=listed.tasks[0].config,
        header=model_file(world.task).header,
        values=PARAMETERS,
        audience=world.task.config.server.name,
        credential=bad.credential,
        public=bad.key.public,
        private=bad.key.private,
        scale=scale,
    )


@asynccontextmanager
async def _abuse(folder: Path, abuse: Abuse):  # type: ignore[no-untyped-def]
    """Around the storm, which another process makes: it shares nothing with the honest clients but the machine."""
    file = folder / "abuse.json"
    file.write_bytes(msgspec.json.encode(abuse))
    command = [sys.executable, "-m", "tests.security.attacks.abuse", str(file)]
    process = await asyncio.create_subprocess_exec(*command, preexec_fn=lambda: os.nice(10))
    try:
        yield
        assert process.returncode is None
    finally:
        process.terminate()
        await process.wait()


def _disk(deployment: Deployment) -> int:
    files = (path for place in STRANGERS_PLACES for path in (deployment.data_dir / place).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def _lines(deployment: Deployment) -> int:
    return deployment.log("server-0").count("\n")


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser("tests.security.attacks.storm", description=__doc__)
    parser.add_argument("--clients", type=int, default=100, help="honest clients")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--think", type=float, default=4.0, help="seconds between two uploads of a client")
    parser.add_argument("--scale", type=float, default=1.0, help="how much abuse")
    arguments = parser.parse_args()
    found = asyncio.run(storm(arguments.clients, arguments.seconds, scale=arguments.scale, think=arguments.think))
    print(found)
    sys.exit(found.kept < LEAST_RATE or found.memory > MOST_MEMORY or found.disk_after > found.disk_before)


if __name__ == "__main__":
    main()
