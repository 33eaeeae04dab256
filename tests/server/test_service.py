"""The service around the protocol: its description, events, metrics, and how it goes away."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from he_protocol import documents, paths, problems
from he_protocol.headers import METHOD_OVERRIDE, OVERRIDABLE
from he_protocol.problems import PROBLEMS
from he_server.http.app import drain
from he_server.http.openapi import PROBLEM, problems_of
from he_server.http.routes import JSON, ROUTES

from .world import World

ELSEWHERE = {
    # Raised only by other parties, or at start; everything else must be documented for some route.
    "duplicate-client", "duplicate-update", "number-used", "update-opened-before", "budget-exhausted",
    "too-many-clients", "tenseal-version", "missing-package", "private-context", "keys-not-ready", "commitment-broken",
    "bad-settings", "bad-key-file", "bad-module", "unreachable", "unexpected-answer", "audit-broken", "refused-between",
    "ledger-mismatch", "epoch-destroyed", "old-epoch", "ambiguous-task", "below-floor", "name-taken", "bad-invitation",
    # Said of a method that a path does not have.
    "method-not-allowed",
    # Told as a round's failure.
    "too-few-clients", "no-quorum", "combine-refused", "excluded-update", "abandoned",
}  # fmt: skip


@pytest.fixture
async def description(world: World) -> dict[str, Any]:
    response = await world.call(None, "GET", "/v1/openapi.json")
    found: dict[str, Any] = await response.json()
    return found


async def test_every_route_is_described(world: World, description: dict[str, Any]) -> None:
    served = {
        (route.method.lower(), route.resource.canonical)
        for route in world.http.app.router.routes()
        if route.resource is not None
    }
    described = {(method, path) for path, methods in description["paths"].items() for method in methods}
    overriding = {("post", path) for method, path in described if method.upper() in OVERRIDABLE}
    assert described == {(route.method.lower(), route.path) for route in ROUTES}
    assert served == described | overriding
    assert METHOD_OVERRIDE in description["info"]["description"]
    names = [op["operationId"] for methods in description["paths"].values() for op in methods.values()]
    assert len(set(names)) == len(names)


def test_every_problem_of_the_server_is_described() -> None:
    described = {problem.slug for route in ROUTES for problem in problems_of(route)}
    nowhere = set(PROBLEMS) - described - ELSEWHERE
    assert not nowhere, f"in no route: add them to `problems=` of one, or to ELSEWHERE: {nowhere}"
    assert described | ELSEWHERE == set(PROBLEMS)
    assert not described & ELSEWHERE


def _check(description: dict[str, Any], path: str, method: str, status: int, media: str, document: Any) -> None:
    content = description["paths"][path][method]["responses"][str(status)]["content"]
    schema = {"components": description["components"], **content[media]["schema"]}
    Draft202012Validator(schema).validate(document)


async def test_answers_are_as_described(world: World, description: dict[str, Any]) -> None:
    uploads = await world.fill(3)
    await world.certify(1)
    await world.put_share(0, 1, await world.share(0, 1))
    values = {
        "{task}": world.task.id,
        "{update}": uploads[0].id.hex(),
        "{upload}": "0" * 32,
        "{part}": "c1",
        "{round}": "1",
        "{phase}": "reveal",
        "{holder}": "holder-0",
    }
    client = world.person("client-0", "client")
    seen = 0
    for route in ROUTES:
        if route.method != "GET" or "events" in route.path:
            continue
        path = re.sub(r"{\w+}", lambda match: values[match.group()], route.path)
        who = None if route.access == "public" else client if route.access == "client" else world.holders[0]
        response = await world.call(who, "GET", path)
        method = route.method.lower()
        if response.content_type in {JSON, PROBLEM}:
            _check(description, route.path, method, response.status, response.content_type, await response.json())
            seen += 1
        assert response.status < 300 or response.content_type == PROBLEM
    assert seen >= 12
    ada = world.person("ada", "client")
    for status, path in ((201, "/v1/tasks/{task}/updates/{update}"),):
        response = await world.put(ada, world.upload(ada))
        _check(description, path, "put", status, JSON, await response.json())
    refused = await world.put(ada, world.upload(ada))
    _check(description, "/v1/tasks/{task}/updates/{update}", "put", 409, PROBLEM, await refused.json())


async def _event(response: Any) -> documents.RoundStatus:
    """The next event that is not a comment."""
    async with asyncio.timeout(20):
        while True:
            line = (await response.content.readline()).decode()
            if line.startswith("data: "):
                return msgspec.json.decode(line.removeprefix("data: "), type=documents.RoundStatus)


async def test_events_tell_every_change_of_state(world: World) -> None:
    response = await world.call(world.holders[0], "GET", paths.events_path(world.task.id))
    assert response.content_type == "text/event-stream"
    first = await _event(response)
    assert (first.round, first.state) == (1, "open")
    await world.fill(3)
    assert [(e.round, e.state) for e in (await _event(response), await _event(response))] == [
        (1, "closed"),
        (2, "open"),
    ]
    await world.form(1)
    assert (await _event(response)).state == "opening"
    await world.open(1)
    assert (await _event(response)).state == "published"
    response.close()


async def test_events_of_another_process_come_by_polling(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    response = await world.call(world.holders[0], "GET", paths.events_path(world.task.id))
    await _event(response)
    monkeypatch.setattr(world.server.news, "notify", lambda _task: None)
    await world.fill(3)
    assert (await _event(response)).state == "closed"
    response.close()


async def test_draining_refuses_new_work_and_finishes_what_has_begun(world: World) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    arrived, released = asyncio.Event(), asyncio.Event()

    async def body():  # type: ignore[no-untyped-def]
        yield upload.frame[:1000]
        arrived.set()
        await released.wait()
        yield upload.frame[1000:]

    path = paths.update_path(world.task.id, upload.id.hex())
    sending = asyncio.create_task(world.call(ada, "PUT", path, data=body()))
    await arrived.wait()
    while not world.server.drain.in_flight:
        await asyncio.sleep(0.01)
    draining = asyncio.create_task(drain(world.server))
    await asyncio.sleep(0.05)
    assert not draining.done()
    assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.SHUTTING_DOWN
    assert await world.problem(await world.call(None, "GET", paths.TASKS)) == problems.SHUTTING_DOWN
    assert (await world.call(None, "GET", "/healthz")).status == 200
    released.set()
    assert (await sending).status == 201
    async with asyncio.timeout(20):
        await draining


async def test_draining_waits_no_longer_than_it_may(world: World) -> None:
    world.server.settings = world.server.settings.model_copy(update={"drain_seconds": 0.05})
    world.server.drain.enter()
    async with asyncio.timeout(20):
        await drain(world.server)
    world.server.drain.leave()


async def test_draining_ends_event_streams(world: World) -> None:
    response = await world.call(world.holders[0], "GET", paths.events_path(world.task.id))
    await _event(response)
    async with asyncio.timeout(20):
        await drain(world.server)
        await response.read()


async def test_metrics(world: World) -> None:
    await world.fill(3)
    ada = world.person("ada", "client")
    await world.put(ada, world.upload(ada, epoch=7))
    await world.work()
    await world.open(1)
    text = await (await world.call(None, "GET", "/metrics")).text()
    for line in (
        'hushsum_updates_total{outcome="accepted"} 3.0',
        'hushsum_updates_total{outcome="wrong-epoch"} 1.0',
        'hushsum_rounds_total{problem="",state="published"} 1.0',
        'hushsum_requests_total{method="PUT",route="/v1/tasks/{task}/updates/{update}",status="201"} 3.0',
        'hushsum_refusals_total{problem="wrong-epoch",route="/v1/tasks/{task}/updates/{update}"} 1.0',
    ):
        assert line in text
    for stage in ("sum", "wait_shares", "open"):
        assert f'hushsum_stage_seconds_count{{stage="{stage}"}} 1.0' in text
    assert float(re.findall(r"^hushsum_received_bytes_total (\S+)$", text, re.M)[0]) > 3 * len(world.upload(ada).body)


async def test_one_line_per_request_without_bodies(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    ada = world.person("ada", "client")
    capsys.readouterr()
    await world.put(ada, world.upload(ada))
    lines = [line for line in capsys.readouterr().out.splitlines() if "request" in line]
    assert len(lines) == 1
    assert "party=ada" in lines[0]
    assert ada.credential[-20:] not in lines[0]
    assert json.dumps(ada.name) not in lines[0]
