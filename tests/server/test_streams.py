"""Answers that break off: quietly when the receiver has gone, visibly when the server fails."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from io import BytesIO

import aiohttp
import pytest
from aiohttp import web

from he_protocol import paths, problems
from he_protocol.identity.requests import prove_request
from he_server.http import responses
from he_server.http.app import make_app

from .world import Person, World

LARGE = 1 << 26
"""More than all socket buffers hold."""


@pytest.fixture
def ada(world: World) -> Person:
    return world.person("ada", "client")


def _grow_model(world: World) -> None:
    (model,) = [path for path in (world.server.settings.data_dir / "blobs" / "models").rglob("*") if path.is_file()]
    os.truncate(model, LARGE)


async def _ended(world: World) -> str:
    """The metrics, once nothing is under way."""
    async with asyncio.timeout(20):
        await world.server.drain.idle.wait()
    return await (await world.call(None, "GET", "/metrics")).text()


async def test_a_receiver_that_goes_away_is_nobodys_fault(
    world: World, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    _grow_model(world)
    path = paths.model_path(world.task.id)
    proof = prove_request(
        ada.key, ada.credential, audience="aggregator", method="GET", path=path, now=world.clock(), jti="1"
    )
    runner = web.AppRunner(make_app(world.server, work=False))  # aiohttp's own test server cancels handlers; this not
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    lines = [f"GET {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in proof.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await reader.readuntil(b"\r\n\r\n")
    with caplog.at_level(logging.WARNING):
        writer.transport.abort()
        text = await _ended(world)
    await runner.cleanup()
    assert caplog.records == []
    assert "hushsum_refusals_total{" not in text
    assert re.findall(r'route="/v1/tasks/{task}/model",status="(\d+)"', text) == ["200"] * 2  # and when the count began


async def test_a_server_that_fails_in_the_middle_gives_no_whole_answer(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grow_model(world)

    monkeypatch.setattr(world.server.blobs, "open", lambda _name: BytesIO(bytes(responses.BLOCK_BYTES + 1)))
    with pytest.raises(aiohttp.ClientError):
        await (await world.call(ada, "GET", paths.model_path(world.task.id))).read()
    assert 'hushsum_refusals_total{problem="internal",route="/v1/tasks/{task}/model"} 1.0' in await _ended(world)


async def test_an_unknown_expectation_is_refused(world: World) -> None:
    answer = await world.call(None, "GET", "/healthz", headers={"Expect": "tea"})
    assert await world.problem(answer) == problems.EXPECTATION_FAILED
    assert (await world.call(None, "GET", "/healthz", headers={"Expect": "100-Continue"})).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/nothing"])
async def test_no_answer_names_versions(world: World, path: str) -> None:
    assert (await world.call(None, "GET", path)).headers["Server"] == "HushSum"
