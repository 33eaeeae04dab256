"""Adding tasks: what the authority signed is taken as it is, once."""

from __future__ import annotations

import asyncio
import hashlib
import io
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from he_protocol import documents, frames, paths, problems
from he_protocol.config import ServerEntry, TaskConfig, TensorSpec
from he_protocol.documents import TaskState
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Message
from he_protocol.problems import ProblemType
from he_server.cli.main import app
from he_server.rules.updates import Openings, check_taking
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.protocol.parties import ALICE
from tests.support.kahe import INSECURE_TASK

from .conftest import both
from .world import World, initial_model


async def _post(world: World, token: str, model: bytes) -> tuple[int, ProblemType | None]:
    response = await world.http.post(paths.TASKS, data=io.BytesIO(frames.start(token.encode()) + model))
    return response.status, None if response.status < 300 else await world.problem(response)


@both
async def test_the_same_task_again(empty_world: World) -> None:
    config = empty_world.config()
    token = empty_world.authority.sign(config)
    assert await _post(empty_world, token, initial_model(config)) == (201, None)
    assert await _post(empty_world, token, initial_model(config)) == (200, None)
    assert await _post(empty_world, token, initial_model(config, 1.0)) == (400, problems.DIGEST_MISMATCH)
    listed = await empty_world.get(None, paths.TASKS, documents.TaskList)
    assert len(listed.tasks) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scheme": "none"}, problems.WRONG_SCHEME),
        ({"profile": "none"}, problems.WRONG_SCHEME),
        (INSECURE_TASK, problems.WRONG_SCHEME),
        ({"fingerprint": bytes(32)}, problems.FINGERPRINT_MISMATCH),
        ({"threshold": 4}, problems.BAD_COMMITTEE),
        ({"agreement": 1}, problems.BAD_COMMITTEE),
        ({"allow_no_collusion": False}, problems.BAD_COMMITTEE),
        ({"min_clients": 4}, problems.BAD_PLAN),
        ({"scale": 1e30}, problems.SUM_COULD_WRAP),
        ({"server": ServerEntry("aggregator", ALICE.public)}, problems.NOT_ADDRESSED),
    ],
    ids=lambda value: value.slug if isinstance(value, ProblemType) else "_".join(value),
)
async def test_a_task_that_is_refused(empty_world: World, changes: dict[str, Any], expected: ProblemType) -> None:
    config = empty_world.config(**changes)
    status, problem = await _post(empty_world, empty_world.authority.sign(config), initial_model(config))
    assert (status, problem) == (expected.status, expected)


async def test_a_task_by_another_authority(empty_world: World) -> None:
    config = empty_world.config()
    token = SigningKey.generate().sign(config)
    assert await _post(empty_world, token, initial_model(config)) == (401, problems.BAD_SIGNATURE)


class Newer(Message, frozen=True):
    name: str


async def test_another_kind_of_message(empty_world: World) -> None:
    token = empty_world.authority.sign(Newer("task"))
    assert await _post(empty_world, token, b"") == (401, problems.BAD_SIGNATURE)


async def test_a_model_far_too_large(empty_world: World) -> None:
    token = empty_world.authority.sign(empty_world.config())
    assert await _post(empty_world, token, bytes(2 * 1024 * 1024)) == (413, problems.TOO_LARGE)


async def test_a_model_that_is_no_safetensors_file(empty_world: World) -> None:
    token = empty_world.authority.sign(empty_world.config())
    assert await _post(empty_world, token, b"junk") == (400, problems.MALFORMED)


@pytest.mark.parametrize("what", ["name", "shape", "dtype", "nan", "more"])
async def test_tensors_that_are_not_the_tasks(empty_world: World, what: str) -> None:
    config: TaskConfig = empty_world.config(tensors=(TensorSpec("w", (2,)),))
    value = np.zeros(2, dtype=np.float32)
    tensors: Any = {
        "name": {"v": value},
        "shape": {"w": value[:1]},
        "dtype": {"w": value.astype(np.float64)},
        "nan": {"w": np.full(2, np.nan, dtype=np.float32)},
        "more": {"w": value, "v": value},
    }[what]
    model = bytes(save(tensors))
    signed = changed(config, initial_model=hashlib.sha256(model).digest())  # the authority says so itself
    status = await _post(empty_world, empty_world.authority.sign(signed), model)
    assert status == (400, problems.BAD_TENSORS)


@pytest.mark.parametrize(
    ("state", "openings", "expected"),
    [
        ("open", Openings(9, 0, 0), None),
        ("open", Openings(9, 1, 1), problems.TASK_PAUSED),
        ("open", Openings(10, 0, 1), problems.TASK_CLOSED),
        ("open", Openings(11, 0, 0), problems.TASK_CLOSED),  # after `recover`
        ("open", Openings(8, 1, 5), None),
        ("paused", Openings(0, 0, 0), problems.TASK_PAUSED),
        ("paused", Openings(10, 0, 0), problems.TASK_CLOSED),
        ("closed", Openings(0, 0, 0), problems.TASK_CLOSED),
    ],
)
async def test_when_a_task_takes_updates(
    world: World, state: TaskState, openings: Openings, expected: ProblemType | None
) -> None:
    assert world.task.config.rounds.max_openings == 10
    if expected is None:
        check_taking(world.task, state, openings)
        return
    with expect_problem(expected):
        check_taking(world.task, state, openings)


@both
async def test_a_paused_task_finishes_its_rounds_and_goes_on(world: World) -> None:
    early, late = world.person("early", "client"), world.person("late", "client")
    first = world.upload(early)
    assert (await world.put(early, first)).status == 201
    await world.fill(2)
    await world.server.store.tasks.move(world.task.id, "paused")
    assert await world.problem(await world.put(late, world.upload(late))) == problems.TASK_PAUSED
    assert (await world.put(early, first)).status == 200  # its receipt is asked for again
    await world.open(1)
    assert (await world.round(1)).state == "published"
    assert (await world.server.store.tasks.get(world.task.id)).state == "paused"
    await world.server.store.tasks.move(world.task.id, "open")
    assert (await world.put(late, world.upload(late, base_version=1))).status == 201


@both
async def test_an_operator_pauses_resumes_and_closes_by_command(world: World) -> None:
    settings, name = world.server.settings, world.task.config.name
    where = ["--data-dir", str(settings.data_dir), "--database-url", settings.database_url]

    async def said(*words: str, answer: str = "") -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, app, ["task", *words, *where], input=answer)
        return result.exit_code, result.output

    assert await said("pause", name) == (0, f"{name}, epoch 1: paused\n")
    assert (await world.server.store.tasks.get(world.task.id)).state == "paused"
    assert await said("resume", world.task.id[:12]) == (0, f"{name}, epoch 1: open\n")
    assert (await said("close", name, answer="n\n"))[0] == 1
    assert (await world.server.store.tasks.get(world.task.id)).state == "open"
    code, shown = await said("close", name, answer="y\n")
    assert (code, shown.splitlines()[-1]) == (0, f"{name}, epoch 1: closed")
    for words in (("resume", name), ("pause", "nobody"), ("pause", "")):
        code, shown = await said(*words)
        assert code == 2
        assert "Traceback" not in shown


@both
async def test_a_name_is_its_newest_epoch_for_an_operator(world: World) -> None:
    first = world.task
    await world.add_task(epoch=2)
    where = ["--data-dir", str(world.server.settings.data_dir), "--database-url", world.server.settings.database_url]

    async def pause(task: str) -> list[str]:
        done = await asyncio.to_thread(CliRunner().invoke, app, ["task", "pause", task, *where])
        assert done.exit_code == 0, done.output
        tasks = {"first": first.id, "second": world.task.id}
        return [name for name, task in tasks.items() if (await world.server.store.tasks.get(task)).state == "paused"]

    assert await pause(first.config.name) == ["second"]
    assert await pause(first.id) == ["first", "second"]
    done = await asyncio.to_thread(CliRunner().invoke, app, ["task", "pause", "nobody", *where])
    assert first.id[:12] in done.output
    assert world.task.id[:12] in done.output


@both
async def test_a_closed_task_stays_closed(world: World) -> None:
    await world.server.store.tasks.move(world.task.id, "closed")
    late = world.person("late", "client")
    assert await world.problem(await world.put(late, world.upload(late))) == problems.TASK_CLOSED
    with expect_problem(problems.WRONG_STATE, "closed"):
        await world.server.store.tasks.move(world.task.id, "open")


@both
async def test_after_the_last_opening_no_update_is_taken(world: World) -> None:
    await world.add_task(max_openings=1)
    await world.fill(3)
    late = world.person("late", "client")
    assert await world.problem(await world.put(late, world.upload(late))) == problems.TASK_PAUSED  # it may yet fail
    await world.open(1)
    assert await world.problem(await world.put(late, world.upload(late, base_version=1))) == problems.TASK_CLOSED
