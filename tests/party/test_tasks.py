"""Which task is taken: by the signed name or hash, never by what a server writes beside it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from he_client import HushSumClient
from he_party import tasks
from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.tasks import MEMORY_FILE, Listed, SeenEpoch, TaskMemory, choose, learn, read
from he_protocol import documents
from he_protocol.identity.jws import SigningKey
from he_protocol.problems import AMBIGUOUS_TASK, BAD_PLAN, BAD_SIGNATURE, MALFORMED, NOT_FOUND, OLD_EPOCH, WRONG_SCHEME
from he_protocol.schemes.registry import insecure_profiles
from he_protocol.task import Task
from he_testing.fake_server import FakeServer, answer
from he_testing.problems import expect_problem
from tests.support.kahe import INSECURE_TASK
from tests.support.parties import NOW, World

ONCE = RetryPolicy(give_up=0)


@pytest.fixture(scope="module")
def world() -> World:
    return World(plan={"name": "keyboard", "scheme": "kahe", "profile": "kahe-14", "scale": 16.0})


def epoch(world: World, number: int, **changes: Any) -> Task:
    return world.signed(world.task.config, epoch=number, **changes)


def listed(world: World, *tasks: Task, name: str = "keyboard", label: str = "") -> Listed:
    statuses = [documents.TaskStatus(label or task.id, name, task.token, True, 0, 1) for task in tasks]
    return read(statuses, world.authority.key.public)


def seen(task: Task) -> tasks.Seen:
    return {task.config.name: SeenEpoch(task.config.epoch, task.hash)}


def by_labels(listed: Listed, wanted: str, seen: tasks.Seen = tasks.NOTHING) -> Task:
    """The defence off: the server says which of the signed tasks is meant."""
    return listed.tasks[0]


class Liar(FakeServer):
    """Writes the labels of its task beside another one that the authority signed as well."""

    lie: Task

    async def _tasks(self, _request: object):  # type: ignore[no-untyped-def]
        status = documents.TaskStatus(self.task.id, self.task.config.name, self.lie.token, True, 0, 1)
        return answer(documents.TaskList((status,)))


@pytest.mark.parametrize("by_hash", [False, True], ids=["by_name", "by_hash"])
async def test_a_server_that_labels_a_weak_task_as_the_one_that_was_asked_for(
    world: World, tmp_path: Path, by_hash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = world.signed(world.task.config, name="debug-no-dp", min_clients=2)
    wanted = world.task.id if by_hash else "keyboard"
    server = Liar(world.task)
    server.lie = weak
    async with server:
        identity = world.client("victim")
        async with HushSumClient(server.url, identity, state_dir=tmp_path, clock=lambda: NOW, retry=ONCE) as client:
            with expect_problem(NOT_FOUND):
                await client.task(wanted)
            with monkeypatch.context() as off:
                off.setattr(tasks, "choose", by_labels)
                assert (await client.task(wanted)).config.name == "debug-no-dp"
        async with HttpTransport(server.url, world.committee[0], retry=ONCE) as transport:
            with expect_problem(NOT_FOUND):
                await transport.task(wanted)


async def test_no_client_and_no_key_holder_takes_a_profile_for_tests(world: World, tmp_path: Path) -> None:
    """Its ring is so small that nothing would be hidden."""
    with insecure_profiles():
        weak = world.signed(world.task.config, **INSECURE_TASK)
    async with FakeServer(weak) as server:
        identity = world.client("victim")
        async with HushSumClient(server.url, identity, state_dir=tmp_path, clock=lambda: NOW, retry=ONCE) as client:
            with expect_problem(WRONG_SCHEME, "for tests only"):
                await client.task(weak.id)
            with insecure_profiles():
                assert (await client.task(weak.id)).token == weak.token
        async with HttpTransport(server.url, world.committee[0], retry=ONCE) as transport:
            with expect_problem(WRONG_SCHEME, "for tests only"):
                await transport.task(weak.id)


def test_labels_count_for_nothing(world: World) -> None:
    task = epoch(world, 1)
    assert choose(listed(world, task, name="another", label="0" * 64), "keyboard") == task
    assert choose(listed(world, task, name="another", label="0" * 64), task.id) == task
    for wanted in ("another", "0" * 64):
        with expect_problem(NOT_FOUND):
            choose(listed(world, task, name="another", label="0" * 64), wanted)


def test_of_a_name_the_newest_epoch(world: World) -> None:
    first, second = epoch(world, 1), epoch(world, 2)
    for order in ((first, second), (second, first)):
        assert choose(listed(world, *order), "keyboard") == second
        assert choose(listed(world, *order), first.id) == first
        assert choose(listed(world, *order), "keyboard", seen(first)) == second


def test_an_epoch_never_goes_back(world: World) -> None:
    first, second = epoch(world, 1), epoch(world, 2)
    assert choose(listed(world, first), "keyboard") == first  # what the memory is for
    with expect_problem(OLD_EPOCH, "epoch 2 or later"):
        choose(listed(world, first), "keyboard", seen(second))
    assert choose(listed(world, first), first.id, seen(second)) == first  # asked for by its hash: no choice is left
    assert learn(seen(second), first) == seen(second)
    assert learn(seen(first), second) == seen(second)
    assert learn({}, first) == seen(first)


def test_of_one_epoch_the_task_that_was_seen(world: World) -> None:
    """Two tasks of one name and epoch: a draft, say, that the authority signed as well."""
    strong, draft = epoch(world, 1), epoch(world, 1, min_clients=2)
    with expect_problem(AMBIGUOUS_TASK, "ask for its hash"):
        choose(listed(world, strong, draft), "keyboard")
    with expect_problem(AMBIGUOUS_TASK):
        choose(listed(world, draft), "keyboard", seen(strong))
    for order in ((strong, draft), (draft, strong)):
        assert choose(listed(world, *order), "keyboard", seen(strong)) == strong
    assert choose(listed(world, draft, draft), "keyboard") == draft
    assert learn(seen(strong), draft) == seen(draft)  # the user has asked for its hash
    newer = epoch(world, 2)
    assert choose(listed(world, newer), "keyboard", seen(strong)) == newer
    with expect_problem(AMBIGUOUS_TASK):
        choose(listed(world, newer, epoch(world, 2, min_clients=2)), "keyboard", seen(strong))


def test_a_name_that_looks_like_a_hash(world: World) -> None:
    """The authority signs no such name; were there one, 64 hex digits would still mean the hash."""
    task = world.task
    with expect_problem(BAD_PLAN, "hash"):
        replace(task.config, name="a" * 64).check()
    decoy = Task(replace(task.config, name=task.id), "token", bytes(32))
    both = Listed((decoy, task), ())
    assert choose(both, task.id) is task
    with expect_problem(NOT_FOUND):
        choose(Listed((decoy,), ()), task.id)


def test_a_task_that_does_not_verify_costs_the_others_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    good = epoch(world, 1)
    forged = SigningKey.generate().sign(world.task.config)
    statuses = [
        documents.TaskStatus("a" * 64, "forged", forged, True, 0, 1),
        documents.TaskStatus("b" * 64, "nonsense", "a.b", True, 0, 1),
        documents.TaskStatus(good.id, "keyboard", good.token, True, 0, 1),
    ]
    found = read(statuses, world.authority.key.public)
    assert choose(found, "keyboard") == choose(found, good.id) == good
    for wanted in ("forged", "a" * 64):
        with expect_problem(BAD_SIGNATURE):
            choose(found, wanted)
    with expect_problem(MALFORMED):
        choose(found, "nonsense")
    tasks.log_refused(found)
    tasks.log_refused(Listed((good,), ()))
    assert [record.message.split(",")[0] for record in caplog.records] == ["2 listed tasks do not verify"]


async def test_a_device_remembers_over_its_restarts(world: World, tmp_path: Path) -> None:
    first, second = epoch(world, 1), epoch(world, 2)
    async with FakeServer(second) as server:
        me = world.client("device")

        def device() -> HushSumClient:
            return HushSumClient(server.url, me, state_dir=tmp_path, clock=lambda: NOW, retry=ONCE)

        async with device() as client:
            assert (await client.task("keyboard")).config.epoch == 2
        server.task = first
        async with device() as client:
            with expect_problem(OLD_EPOCH):
                await client.task("keyboard")
            assert (await client.task(first.id)).config.epoch == 1
            with expect_problem(OLD_EPOCH):
                await client.task("keyboard")
        (tmp_path / MEMORY_FILE).unlink()  # off: a device that has forgotten is led back
        async with device() as client:
            assert (await client.task("keyboard")).config.epoch == 1


def test_the_file_of_what_was_seen(world: World, tmp_path: Path) -> None:
    path = tmp_path / "state" / MEMORY_FILE
    memory, other = TaskMemory(path, world.authority.key.public), TaskMemory(path, SigningKey.generate().public)
    assert memory.seen() == {}
    memory.learn(epoch(world, 3))
    other.learn(epoch(world, 1))
    memory.learn(epoch(world, 2))
    memory.learn(epoch(world, 9, name="another"))
    assert {name: line.epoch for name, line in memory.seen().items()} == {"keyboard": 3, "another": 9}
    assert {name: line.epoch for name, line in other.seen().items()} == {"keyboard": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{}")
    with expect_problem(MALFORMED):
        memory.learn(epoch(world, 1))  # a damaged memory is not taken for an empty one


def test_what_was_seen_is_durable_before_the_task_is_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in the middle leaves the memory of before."""
    memory = TaskMemory(tmp_path / MEMORY_FILE, world.authority.key.public)
    memory.learn(epoch(world, 1))
    before = json.loads((tmp_path / MEMORY_FILE).read_bytes())
    with monkeypatch.context() as cut:
        cut.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            memory.learn(epoch(world, 2))
    assert json.loads((tmp_path / MEMORY_FILE).read_bytes()) == before
    memory.learn(epoch(world, 2))
    assert memory.seen()["keyboard"].epoch == 2
