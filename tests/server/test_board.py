"""The board of the key ceremony."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientResponse

from he_protocol import documents, frames, paths, problems
from he_protocol.messages import Commitment, Confirmation, Contribution, Message, Reveal, SubshareDigest
from he_protocol.schemes.ckks import CEREMONY
from he_server.rules.board import check_phase
from he_testing.parties import Parties
from he_testing.plans import plan
from he_testing.problems import expect_problem

from .conftest import both
from .world import World

PHASES = [phase.name for phase in CEREMONY]


def _message(world: World, phase: str, holder: int, /, **changes: Any) -> Message:
    bound: dict[str, Any] = {"task_hash": world.task.hash, "epoch": 1, "holder": world.holders[holder].name, **changes}
    match phase:
        case "contribution":
            return Contribution(boxes=(), **bound)
        case "commitment":
            return Commitment(transcript=bytes(32), digests=(SubshareDigest(0, bytes(32)),), **bound)
        case "reveal":
            return Reveal(transcript=bytes(32), digests=(), **bound)
        case "confirmation":
            return Confirmation(transcript=bytes(32), key=bytes(32), **bound)
        case _:
            raise ValueError(phase)


async def _post(world: World, phase: str, holder: int, body: bytes = b"", /, **changes: Any) -> ClientResponse:
    person = world.holders[holder]
    token = person.key.sign(_message(world, phase, holder, **changes))
    path = paths.post_path(world.task.id, phase, person.name)
    return await world.call(person, "PUT", path, data=frames.start(token.encode()) + body)


@both
@pytest.mark.parametrize("phase", PHASES)
async def test_posts_are_listed_and_fetched(world: World, phase: str) -> None:
    response = await _post(world, phase, 1, b"key parts")
    assert response.status == 201
    client = world.person("ada", "client")
    found = await world.get(client, paths.board_path(world.task.id, phase), documents.Board)
    assert [(post.holder, post.size) for post in found.posts] == [("holder-1", 9)]
    body = await world.call(client, "GET", paths.post_path(world.task.id, phase, "holder-1"))
    assert await body.read() == b"key parts"


@both
async def test_keys_are_ready_with_the_last_confirmation(world: World) -> None:
    ready = []
    for phase, holder in product(PHASES, range(3)):
        assert (await _post(world, phase, holder)).status == 201
        ready.append((await world.get(None, paths.task_path(world.task.id), documents.TaskStatus)).keys_ready)
    assert ready == [False] * 11 + [True]


@both
async def test_a_repeat_and_a_contradiction(world: World) -> None:
    assert (await _post(world, "reveal", 0, b"bytes")).status == 201
    assert (await _post(world, "reveal", 0, b"bytes")).status == 200
    other = await _contradict(world)
    assert await world.problem(other) == problems.CEREMONY_CONFLICT


async def _contradict(world: World) -> ClientResponse:
    person = world.holders[0]
    message = Reveal(world.task.hash, 1, person.name, b"\1" * 32, ())
    path = paths.post_path(world.task.id, "reveal", person.name)
    return await world.call(person, "PUT", path, data=frames.start(person.key.sign(message).encode()))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_hash": bytes(32)}, problems.WRONG_TASK),
        ({"epoch": 2}, problems.WRONG_EPOCH),
        ({"holder": "holder-1"}, problems.NOT_ADDRESSED),
    ],
    ids=["task", "epoch", "holder"],
)
async def test_a_post_bound_to_something_else(
    world: World, changes: dict[str, Any], expected: problems.ProblemType
) -> None:
    assert await world.problem(await _post(world, "reveal", 0, **changes)) == expected


async def test_a_post_of_another_phase(world: World) -> None:
    person = world.holders[0]
    token = person.key.sign(_message(world, "reveal", 0))
    path = paths.post_path(world.task.id, "commitment", person.name)
    response = await world.call(person, "PUT", path, data=frames.start(token.encode()))
    assert await world.problem(response) == problems.BAD_SIGNATURE


async def test_a_phase_that_the_ceremony_does_not_have(world: World) -> None:
    person = world.holders[0]
    listed, post = paths.board_path(world.task.id, "prologue"), paths.post_path(world.task.id, "prologue", person.name)
    frame = frames.start(person.key.sign(_message(world, "reveal", 0)).encode())
    for answer in (
        await world.call(person, "GET", listed),
        await world.call(person, "GET", post),
        await world.call(person, "PUT", post, data=frame),
    ):
        assert await world.problem(answer) == problems.NOT_FOUND


def test_a_scheme_without_a_ceremony_has_no_board() -> None:
    task = Parties().sign_task(plan(), {"w": np.zeros(2, np.float32)})
    with expect_problem(problems.NOT_FOUND):
        check_phase(task, "reveal")


async def test_a_post_that_is_too_large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_server.services.board.POST_LIMIT", 1000)
    assert await world.problem(await _post(world, "reveal", 0, bytes(1001))) == problems.TOO_LARGE
    assert (await _post(world, "reveal", 0, bytes(1000))).status == 201


async def test_a_post_for_another_holder(world: World) -> None:
    token = world.holders[0].key.sign(_message(world, "reveal", 0))
    path = paths.post_path(world.task.id, "reveal", "holder-1")
    response = await world.call(world.holders[0], "PUT", path, data=frames.start(token.encode()))
    assert await world.problem(response) == problems.NOT_ADDRESSED
