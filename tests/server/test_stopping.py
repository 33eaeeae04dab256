"""A real process at SIGTERM: what has begun is finished, what is leased is given back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from he_protocol import documents, paths, problems
from he_protocol.identity.jws import SigningKey, jwk_x
from he_server.http import process as serving_module
from he_server.settings import Settings
from he_testing.clocks import FakeClock

from .world import START, World

SERVE = [sys.executable, "-m", "he_server"]
STUCK = """
import asyncio, sys
from he_server.cli import main
from he_server.jobs import folding

async def endless(*_):
    print("folding", flush=True)
    await asyncio.Event().wait()

folding.fold_in = endless
sys.argv[0] = "he-server"
main.app()
"""
LONG = 3600.0


@pytest.fixture
def outside(settings: Settings) -> World:
    """The people around a server that is a process of its own."""
    authority = SigningKey.generate()
    (settings.data_dir / "authority.pub").write_text(jwk_x(authority.public))
    clock = FakeClock(START)
    clock.now = time.time()
    return World(authority, settings.read_key(), clock)


@asynccontextmanager
async def serving(world: World, settings: Settings, *program: str, drain: float = 30.0) -> AsyncIterator[Process]:
    """A server process on the settings' directory and database, which `world` speaks to meanwhile."""
    port_file = settings.data_dir / "port"
    port_file.unlink(missing_ok=True)
    arguments = ["serve", "--data-dir", str(settings.data_dir), "--database-url", settings.database_url]
    arguments += ["--port", "0", "--port-file", str(port_file), "--drain-seconds", str(drain)]
    environment = os.environ | {"HUSHSUM_SERVER_LEASE_SECONDS": str(LONG)}
    with (settings.data_dir / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(program or SERVE), *arguments, stdout=PIPE, stderr=log, env=environment
        )
    try:
        async with asyncio.timeout(60):
            while not port_file.exists():
                assert process.returncode is None, (settings.data_dir / "log").read_text()
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port_file.read_text().strip()}") as session:
            world.http = session  # type: ignore[assignment]
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _state(world: World, state: str) -> documents.RoundStatus:
    async with asyncio.timeout(30):
        while (found := await world.round(1)).state != state:
            await asyncio.sleep(0.05)
    return found


async def test_an_upload_in_flight_is_finished(outside: World, settings: Settings) -> None:
    async with serving(outside, settings) as process:
        await outside.add_task()
        ada = outside.person("ada", "client")
        upload = outside.upload(ada)
        admitted, released = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            admitted.set()  # the server has said "100 Continue"
            yield upload.frame[:1000]
            await released.wait()
            yield upload.frame[1000:]

        path = paths.update_path(outside.task.id, upload.id.hex())
        sending = asyncio.create_task(outside.call(ada, "PUT", path, data=body(), expect100=True))
        async with asyncio.timeout(30):
            await admitted.wait()
            process.send_signal(signal.SIGTERM)
            while (answer := await outside.call(None, "GET", "/readyz")).status == 200:
                await asyncio.sleep(0.01)
            assert await outside.problem(answer) == problems.SHUTTING_DOWN
            assert await outside.problem(await outside.call(None, "GET", paths.TASKS)) == problems.SHUTTING_DOWN
            assert not sending.done()
            released.set()
            assert (await sending).status == 201
            assert await process.wait() == 0
    events = [json.loads(line) for line in (settings.data_dir / "log").read_text().splitlines()]
    assert [event["in_flight"] for event in events if event["event"] == "draining"] == [1]
    async with serving(outside, settings):
        assert (await outside.round(1)).updates == 1


async def test_another_process_goes_on_at_once(outside: World, settings: Settings, tmp_path: Path) -> None:
    """The lease would have kept it out for an hour."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    async with serving(outside, settings, sys.executable, str(script), drain=0.2) as process:
        await outside.add_task()
        await outside.fill(3)
        assert process.stdout is not None
        assert (await asyncio.wait_for(process.stdout.readline(), 30)).strip() == b"folding"
        async with serving(outside, settings):
            await asyncio.sleep(1.0)
            assert (await outside.round(1)).state == "closed"  # the lease holds
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
            async with asyncio.timeout(30):
                while not (found := await outside.round(1)).opening:
                    await asyncio.sleep(0.05)
            assert (found.state, found.updates) == ("closed", 3)  # it waits for key holders


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: te"], ids=["nothing", "half a head"])
async def test_a_connection_without_a_whole_head_is_closed(
    outside: World, settings: Settings, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    assert outside
    monkeypatch.setattr(serving_module, "KEEPALIVE_SECONDS", 0.3)
    port_file = settings.data_dir / "port"
    running = asyncio.create_task(serving_module.run(settings.model_copy(update={"port": 0}), port_file))
    async with asyncio.timeout(20):
        while not port_file.exists():
            await asyncio.sleep(0.02)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port_file.read_text()))
        writer.write(sent)
        await reader.read()
    writer.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
