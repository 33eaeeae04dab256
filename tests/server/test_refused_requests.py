"""Requests that are refused for who sends them, or for what they ask."""

from __future__ import annotations

from typing import Any

import pytest

from he_protocol import paths, problems
from he_protocol.identity.jws import SigningKey
from he_protocol.identity.requests import PROOF_SECONDS, prove_request
from he_protocol.problems import ProblemType

from .world import Person, World


def _headers(world: World, who: Person, **changes: Any) -> dict[str, str]:
    claims: dict[str, object] = {
        "audience": "aggregator",
        "method": "GET",
        "path": paths.model_path(world.task.id),
        "now": world.clock(),
        "jti": "once",
    }
    return prove_request(who.key, who.credential, **{**claims, **changes})  # type: ignore[arg-type]


async def _answer(world: World, headers: dict[str, str]) -> ProblemType:
    return await world.problem(await world.http.get(paths.model_path(world.task.id), headers=headers))


async def test_no_credential(world: World) -> None:
    response = await world.http.get(paths.model_path(world.task.id))
    assert response.headers["WWW-Authenticate"] == "DPoP"
    assert await world.problem(response) == problems.UNAUTHENTICATED


@pytest.mark.parametrize(
    "changes",
    [{"audience": "other"}, {"method": "PUT"}, {"path": "/v1/tasks"}, {"now": 1.0}],
    ids=lambda c: next(iter(c)),
)
async def test_a_proof_for_another_request(world: World, changes: dict[str, object]) -> None:
    assert await _answer(world, _headers(world, world.holders[0], **changes)) == problems.UNAUTHENTICATED


async def test_a_proof_by_another_key(world: World) -> None:
    thief = Person("holder-0", "holder", SigningKey.generate(), world.holders[0].credential)
    assert await _answer(world, _headers(world, thief)) == problems.BAD_SIGNATURE


async def test_a_credential_that_is_not_a_jws(world: World) -> None:
    assert await _answer(world, {"Authorization": "DPoP junk", "DPoP": "junk"}) == problems.MALFORMED


async def test_a_credential_of_another_authority(world: World) -> None:
    stranger = world.person("ada", "client", authority=SigningKey.generate())
    assert await _answer(world, _headers(world, stranger)) == problems.FOREIGN_CREDENTIAL


async def test_a_credential_that_expired(world: World) -> None:
    late = world.person("ada", "client", expired=True)
    assert await _answer(world, _headers(world, late)) == problems.EXPIRED_CREDENTIAL


async def test_a_proof_is_good_once(world: World) -> None:
    headers = _headers(world, world.holders[0])
    assert (await world.http.get(paths.model_path(world.task.id), headers=headers)).status == 200
    assert await _answer(world, headers) == problems.REPLAYED_REQUEST
    world.clock.now += PROOF_SECONDS
    assert await _answer(world, headers) == problems.UNAUTHENTICATED


async def test_a_holder_may_not_upload(world: World) -> None:
    upload = world.upload(world.holders[0])
    assert await world.problem(await world.put(world.holders[0], upload)) == problems.WRONG_ROLE


async def test_a_client_may_not_ask_for_openings(world: World) -> None:
    response = await world.call(world.person("ada", "client"), "GET", paths.openings_path(world.task.id))
    assert await world.problem(response) == problems.WRONG_ROLE


@pytest.mark.parametrize("name", ["holder-0", "holder-9"])
async def test_a_holder_outside_the_committee(world: World, name: str) -> None:
    other = world.person(name, "holder")  # holder-0 with another key, or a stranger
    response = await world.call(other, "GET", paths.openings_path(world.task.id))
    assert await world.problem(response) == problems.WRONG_ROLE


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nothing",
        "/v1/tasks/abc",
        f"/v1/tasks/{'0' * 64}",
        "{task}/model?version=9",
        "{task}/model?version=x",
        "{task}/rounds/99",
        "{task}/rounds/x",
        "{task}/rounds/²",
        "{task}/board/nothing",
        "{task}/board/reveal/holder-0",
    ],
)
async def test_nothing_there(world: World, path: str) -> None:
    response = await world.call(world.holders[0], "GET", path.format(task=paths.task_path(world.task.id)))
    assert await world.problem(response) == problems.NOT_FOUND


@pytest.mark.parametrize("update", ["xyz", "A" * 32, "0" * 32])
async def test_no_such_update(world: World, update: str) -> None:
    response = await world.call(world.person("ada", "client"), "GET", paths.update_path(world.task.id, update))
    assert await world.problem(response) == problems.NOT_FOUND


async def test_another_clients_update_is_not_shown(world: World) -> None:
    (upload,) = await world.fill(1)
    response = await world.call(world.person("eve", "client"), "GET", paths.update_path(world.task.id, upload.id.hex()))
    assert await world.problem(response) == problems.NOT_FOUND


async def test_key_parts_only_while_opening(world: World) -> None:
    await world.fill(1)
    response = await world.call(world.holders[0], "GET", paths.key_sections_path(world.task.id, 1))
    assert await world.problem(response) == problems.WRONG_STATE


async def test_wrong_method(world: World) -> None:
    response = await world.call(None, "DELETE", paths.TASKS)
    assert set(response.headers["Allow"].split(",")) == {"GET", "POST"}
    assert await world.problem(response) == problems.METHOD_NOT_ALLOWED


@pytest.mark.parametrize("what", ["sum", "opening"])
async def test_rounds_that_are_not_there_yet(world: World, what: str) -> None:
    response = await world.call(world.holders[0], "GET", f"{paths.round_path(world.task.id, 1)}/{what}")
    assert await world.problem(response) == problems.WRONG_STATE
