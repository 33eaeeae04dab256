"""Alerts that name real metrics, and a server that goes away without leaving a trace of waiting."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml

from he_protocol import paths, problems
from he_server.http.app import begin_draining
from he_server.jobs import folding, worker
from he_server.services.context import METRICS_SECONDS
from he_server.store.address import Address
from tests.support.revocations import revoked

from .conftest import both
from .world import World

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
async def test_an_alert_watches_something_that_exists(world: World, rule: dict[str, str]) -> None:
    text = await (await world.call(None, "GET", "/metrics")).text()
    named = set(re.findall(r"hushsum_\w+", rule["expr"]))
    metrics = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    metrics |= {f"{name}_bucket" for name in metrics}
    assert named <= metrics
    assert named or rule["expr"].startswith("up{")
    assert f"### {rule['alert']}\n" in (ROOT / "docs" / "operations.md").read_text()


async def test_gauges(world: World) -> None:
    await world.fill(2)
    text = await (await world.call(None, "GET", "/metrics")).text()
    assert 'hushsum_live_rounds{state="open"} 1.0' in text
    assert "hushsum_database_up 1.0" in text
    found = dict(re.findall(r"^(hushsum_\w+) (\S+)$", text, re.M))
    assert float(found["hushsum_disk_free_bytes"]) > 0
    assert float(found["hushsum_unfolded_bytes"]) >= 2 * world.task.section("sum").size
    assert found["hushsum_revocations_valid_until_seconds"] == "+Inf"


async def test_the_end_of_the_revocation_list_is_shown(world: World) -> None:
    listed = revoked(world.authority, now=world.clock())
    await world.call(None, "PUT", paths.REVOCATIONS, data=listed.token)
    text = await (await world.call(None, "GET", "/metrics")).text()
    (shown,) = re.findall(r"^hushsum_revocations_valid_until_seconds (\S+)$", text, re.M)
    assert float(shown) == listed.valid_until


async def test_metrics_answer_while_the_database_is_down(world: World) -> None:
    async with world.other_database(Address.read("postgresql://nobody@127.0.0.1:1/none")):
        text = await (await world.call(None, "GET", "/metrics")).text()
        assert "hushsum_database_up 0.0" in text
    await asyncio.sleep(METRICS_SECONDS)
    assert "hushsum_database_up 1.0" in await (await world.call(None, "GET", "/metrics")).text()


@both
async def test_a_worker_that_is_stopped_gives_its_lease_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the round would wait for the lease's end."""
    await world.fill(3)
    reached = asyncio.Event()

    async def endless(*_args: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(folding, "fold_in", endless)
        first = asyncio.create_task(world.worker.run(world.server.drain.stopping))
        await reached.wait()
        assert await worker.Worker(world.server).step() is False  # the lease holds
        begin_draining(world.server)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    world.server.drain.stopping.clear()
    assert await world.work() > 0
    assert (await world.round(1)).opening == 1


async def test_a_worker_stops_after_its_step(world: World) -> None:
    running = asyncio.create_task(world.worker.run(world.server.drain.stopping))
    begin_draining(world.server)
    async with asyncio.timeout(20):
        await running


async def test_requests_are_refused_once_draining(world: World) -> None:
    begin_draining(world.server)
    assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.SHUTTING_DOWN
    assert await world.problem(await world.call(None, "GET", paths.TASKS)) == problems.SHUTTING_DOWN
