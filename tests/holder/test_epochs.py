"""The life of a holder's keys: made, bound to one ledger, used for an epoch, destroyed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config, next_epoch
from he_holder import epochs, rules
from he_holder.agent import Agent
from he_holder.epochs import check_finished, destroy, due, joined_tasks, secrets_of, state_of
from he_holder.holder import KeyHolder
from he_holder.hpke_key import HpkeKey
from he_holder.keyring import HpkeRecord, Keyring, check_ledger
from he_holder.ledger import Ledger, VoteRecord
from he_holder.request import OpeningRequest
from he_party.keyfile import read_private
from he_protocol.config import TensorSpec
from he_protocol.identity.jws import fingerprint
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_KEY_FILE,
    EPOCH_DESTROYED,
    INTERNAL,
    LEDGER_MISMATCH,
    UNREACHABLE,
    WRONG_SCHEME,
    WRONG_STATE,
)
from he_protocol.schemes.registry import insecure_profiles
from he_protocol.task import Task
from he_testing.fake_server import FakeServer, key_bodies, problem
from he_testing.parties import enroll_request
from he_testing.plans import tables
from he_testing.problems import expect_problem
from tests.support.holders import give_key, holder_of, line_to, open_round
from tests.support.kahe import INSECURE_TASK
from tests.support.openings import Sent, ask, combine, send_kahe
from tests.support.parties import NOW, PLAN, World, random_integers
from tests.support.rules import without
from tests.support.seizure import read_one_update

D = 40
PLAN_KAHE = {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0, "max_openings": 2}


def kahe(**changes: Any) -> World:
    return World(plan=PLAN_KAHE | changes, tensors=(TensorSpec("w", (D,)),))


@dataclass
class Scene:
    """Three holders of a `kahe` task, and a server with one closed round."""

    world: World
    server: FakeServer
    holders: list[KeyHolder]
    sent: list[Sent]

    @property
    def folders(self) -> dict[int, Path]:
        return {index: holder.directory for index, holder in enumerate(self.holders)}

    async def open(self, holder: KeyHolder, number: int = 1) -> None:
        async with line_to(self.server.url, holder) as line:
            await open_round(holder, self.world.task, number, line)


def offer(world: World, server: FakeServer, sent: list[Sent], number: int = 1) -> OpeningRequest:
    request = ask(world, [one.update for one in sent], number=number)
    server.offer(request, key_bodies([(one.update, one.body["shares"]) for one in sent]))
    return request


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = kahe()
    async with FakeServer(world.task, committee=world.committee) as server, AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(holder_of(world, i, tmp_path)) for i in range(3)]
        for holder in holders:
            await holder.join(world.task, server.url)
        sent = [send_kahe(world, name, random_integers(D, seed, 1000)) for seed, name in enumerate("abc")]
        offer(world, server, sent)
        yield Scene(world, server, holders, sent)


async def test_an_old_ciphertext_stays_closed_after_the_epoch(scene: Scene) -> None:
    """Before, the same seizure reads one client's update. Once n-t+1 holders destroyed theirs, a part is missing."""
    for holder in scene.holders[:2]:
        await scene.open(holder)
    victim = scene.sent[0]
    left = read_one_update(scene.world, scene.folders, victim) - victim.integers
    assert np.abs(left).max() <= 51  # the attack, with destruction off
    for holder in scene.holders[:2]:
        await destroy(holder, scene.world.task)
    with pytest.raises(KeyError):
        read_one_update(scene.world, scene.folders, victim)


async def test_a_destroyed_key_is_overwritten_before_it_goes(scene: Scene) -> None:
    """What a second name of the file, or an open descriptor, still shows."""
    holder = scene.holders[0]
    path = holder.keyring.path(scene.world.hpke[0].public)
    other = holder.directory.parent / "another-name"
    other.hardlink_to(path)
    before = other.read_bytes()
    await destroy(holder, scene.world.task)
    assert not path.exists()
    assert other.read_bytes() == bytes(len(before))


async def test_binding_a_key_leaves_no_second_copy_on_the_disk(tmp_path: Path) -> None:
    ring, key = Keyring.of(tmp_path), HpkeKey.generate()
    ring.add(key)
    other = tmp_path / "another-name"
    other.hardlink_to(ring.path(key.public))
    assert ring.find(key.public, b"ledger") == key
    assert not any(other.read_bytes())


async def test_seeds_and_leftovers_go_too(tmp_path: Path) -> None:
    world = World()
    async with holder_of(world, 0, tmp_path) as holder:
        give_key(world, 0, holder)
        await holder.join(world.task, "http://server")
        leftover = holder.secret_path(world.task, "draws.partial")
        leftover.write_bytes(b"cut short")
        elsewhere = holder.secret_path(world.signed(world.task.config, epoch=2), "key")
        elsewhere.write_bytes(b"of another epoch")
        key = holder.keyring.path(world.hpke[0].public)
        wanted = {key, leftover, holder.secret_path(world.task, "key")}
        assert set(await secrets_of(holder, world.task)) == wanted
        holder.share_maker(world.task)
        await destroy(holder, world.task)
        assert elsewhere.exists()
        assert not any(path.exists() for path in wanted)
        with expect_problem(BAD_COMMITTEE):  # nor is it in memory
            holder.share_maker(world.task)


async def test_a_key_that_another_live_task_needs_stays_until_that_one_ends(scene: Scene) -> None:
    holder, first = scene.holders[0], scene.world.task
    second = scene.world.signed(first.config, name="second")
    await holder.join(second, scene.server.url)
    key = holder.keyring.path(scene.world.hpke[0].public)
    await destroy(holder, first)
    assert key.exists()
    assert [await state_of(holder, task) for task in (first, second)] == ["destroyed", "open"]
    await destroy(holder, second)
    assert not key.exists()


async def test_a_destroyed_epoch_stays_closed_when_its_key_file_comes_back(scene: Scene) -> None:
    holder, task = scene.holders[0], scene.world.task
    path = holder.keyring.path(scene.world.hpke[0].public)
    copy = path.read_bytes()
    await scene.open(holder)
    await destroy(holder, task)
    path.write_bytes(copy)
    with expect_problem(EPOCH_DESTROYED, "epoch 1"):
        await scene.open(holder)  # also the retry of a round that was opened
    with expect_problem(EPOCH_DESTROYED):
        await holder.join(task, scene.server.url)
    with expect_problem(EPOCH_DESTROYED):
        await holder.ledger.join(task, scene.server.url, NOW)
    request = ask(scene.world, [send_kahe(scene.world, n, random_integers(D, 9, 9)).update for n in "xyz"], number=2)
    with expect_problem(EPOCH_DESTROYED):
        await holder.ledger.decide(request)
    await holder.ledger.decide(request, without(rules.epoch_alive))


async def test_the_ledger_knows_before_the_first_key_goes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle: the epoch is over, and doing it again finishes it."""
    holder, task = scene.holders[0], scene.world.task

    def crash(_: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(epochs, "erase_private", crash)
    with pytest.raises(OSError, match="power cut"):
        await destroy(holder, task)
    assert await holder.ledger.destroyed() == {task.hash}
    monkeypatch.undo()
    await destroy(holder, task)
    assert await secrets_of(holder, task) == []


async def test_a_key_belongs_to_the_first_ledger_that_uses_it(tmp_path: Path) -> None:
    """A ledger that was lost and begun anew has forgotten every opening: without the check it would open again."""
    world = kahe()
    async with holder_of(world, 0, tmp_path) as holder:
        await holder.join(world.task, "http://server")
        name = holder.ledger.name
    (holder.directory / "ledger.db").unlink()
    async with holder_of(world, 0, tmp_path) as amnesiac:
        assert amnesiac.ledger.name != name
        with expect_problem(LEDGER_MISMATCH, name.hex()):
            await amnesiac.join(world.task, "http://server")
        await amnesiac.ledger.join(world.task, "http://server", NOW)  # as a restored one has it
        assert await state_of(amnesiac, world.task) == "closed"
        with expect_problem(LEDGER_MISMATCH):
            amnesiac.share_maker(world.task)


def test_a_key_that_was_never_used_belongs_to_nobody(tmp_path: Path) -> None:
    ring, key = Keyring.of(tmp_path), HpkeKey.generate()
    ring.add(key)
    with expect_problem(BAD_KEY_FILE, "exists"):
        ring.add(key)
    assert read_private(ring.path(key.public), HpkeRecord).ledger == b""
    assert ring.find(key.public, b"mine") == ring.find(key.public, b"mine") == key
    record = read_private(ring.path(key.public), HpkeRecord)
    check_ledger(record, b"mine")
    with expect_problem(LEDGER_MISMATCH):
        check_ledger(record, b"theirs")
    with expect_problem(LEDGER_MISMATCH):
        ring.find(key.public, b"theirs")
    with expect_problem(BAD_COMMITTEE, fingerprint(b"other")):
        ring.find(b"other", b"mine")
    assert "private" not in repr(record)


async def test_nothing_is_destroyed_while_something_waits(scene: Scene) -> None:
    holder, task = scene.holders[0], scene.world.task
    async with line_to(scene.server.url, holder) as line:
        with expect_problem(WRONG_STATE, "rounds 1"):
            await check_finished(holder, task, line)
        key = ("PUT", f"/v1/tasks/{task.id}/rounds/1/shares/{holder.identity.name}")
        scene.server.replaced[key] = problem(INTERNAL)
        with expect_problem(INTERNAL):
            await scene.open(holder)
        scene.server.withdraw(1)
        with expect_problem(WRONG_STATE, "rounds 1"):  # decided, and its share has not left
            await check_finished(holder, task, line)
        scene.server.replaced[key] = problem(WRONG_STATE)
        offer(scene.world, scene.server, scene.sent)
        with expect_problem(WRONG_STATE):
            await scene.open(holder)  # the others were faster
        scene.server.withdraw(1)
        await check_finished(holder, task, line)
    async with line_to("http://127.0.0.1:9", holder) as nowhere:
        with expect_problem(UNREACHABLE):
            await check_finished(holder, task, nowhere)


async def test_a_share_that_has_left_is_settled(scene: Scene) -> None:
    await scene.open(scene.holders[0])
    (vote,) = await scene.holders[0].ledger.votes(scene.world.task.hash)
    assert vote.settled == NOW


def voted(opening: int, decided: float) -> VoteRecord:
    return VoteRecord(opening, opening, bytes(32), 0, 3, decided, None)


def test_an_epoch_is_due_when_its_budget_is_spent_and_the_grace_is_over() -> None:
    spent = [voted(1, 10.0), voted(2, 30.0), voted(3, 20.0)]
    assert due(spent, 3, 5.0, 35.0)
    assert not due(spent, 3, 5.0, 34.9)
    assert not due(spent[:2], 3, 5.0, 1e9)
    assert due(spent[1:], 3, 5.0, 35.0)  # it was away when the first was opened
    assert not due([], 3, 5.0, 1e9)
    assert not due(spent, 3, float("inf"), 1e9)


async def test_an_agent_ends_its_epoch_by_itself_though_the_server_says_that_a_round_waits(scene: Scene) -> None:
    now = [NOW]
    holder = scene.holders[0]
    holder.clock = lambda: now[0]
    agent = Agent(holder, scene.world.task, scene.server.url, poll_seconds=0.01, destroy_after=60.0)
    offer(scene.world, scene.server, [send_kahe(scene.world, n, random_integers(D, 7, 9)) for n in "def"], 2)
    work = asyncio.create_task(agent.run())
    await scene.server.until(lambda: len(scene.server.put_shares) == 2)
    asked = len(scene.server.seen)
    await scene.server.until(lambda: len(scene.server.seen) >= asked + 3)
    assert not work.done()
    offer(scene.world, scene.server, [send_kahe(scene.world, n, random_integers(D, 8, 9)) for n in "ghi"], 3)
    now[0] += 61.0
    await asyncio.wait_for(work, 10)
    assert await secrets_of(holder, scene.world.task) == []
    assert await holder.ledger.destroyed() == {scene.world.task.hash}


async def test_an_agent_says_that_a_key_stays_for_another_task(scene: Scene) -> None:
    holder, task = scene.holders[0], scene.world.task
    await holder.join(scene.world.signed(task.config, name="second"), scene.server.url)
    await holder.ledger.destroy(task, NOW)
    with structlog.testing.capture_logs() as logs:
        await Agent(holder, task, scene.server.url, poll_seconds=0.01).run()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "HPKE key kept for another task: old ciphertexts can be opened"
    ]


async def test_an_agent_notices_that_another_process_has_destroyed_its_epoch(scene: Scene, tmp_path: Path) -> None:
    holder, task = scene.holders[0], scene.world.task
    work = asyncio.create_task(Agent(holder, task, scene.server.url, poll_seconds=0.01).run())
    await scene.server.until(lambda: len(scene.server.put_shares) == 1)
    async with holder_of(scene.world, 0, tmp_path) as other:
        await destroy(other, task)
    await asyncio.wait_for(work, 10)
    with expect_problem(BAD_COMMITTEE):
        holder.share_maker(task)


def renewed(world: World, index: int) -> tuple[HpkeKey, str]:
    """A new HPKE key of a holder and its new credential."""
    who, key = world.committee[index], HpkeKey.generate()
    request = enroll_request(who.name, "holder", who.key, key)
    return key, issue_credential(world.authority.key, request, "holder", now=NOW, days=1)


def following(world: World) -> tuple[World, Task]:
    """The same parties with the keys of the next epoch."""
    keys, credentials = zip(*(renewed(world, index) for index in range(3)), strict=True)
    before = world.task.config
    config = next_epoch(before, credentials, world.authority.key.public, before.model.initial_model)
    after = World(plan=world.plan, tensors=world.tensors, authority=world.authority, clients=world.clients)
    after.committee, after.server, after.hpke = world.committee, world.server, list(keys)
    after.task = world.signed(config)  # type: ignore[misc]
    return after, after.task


def test_the_next_epoch_is_the_same_plan_with_other_keys() -> None:
    world = kahe()
    _, task = following(world)
    before, after = world.task.config, task.config
    assert (after.epoch, after.name, after.encryption, after.model) == (2, before.name, before.encryption, before.model)
    assert [h.key for h in after.committee.holders] == [h.key for h in before.committee.holders]
    assert not {h.hpke for h in after.committee.holders} & {h.hpke for h in before.committee.holders}
    old = [holder.credential for holder in world.committee]
    with expect_problem(BAD_COMMITTEE, "'holder-0' lists its key of the last epoch"):
        next_epoch(before, old, world.authority.key.public, before.model.initial_model)
    plan = tables(PLAN | world.plan | {"epoch": 2, "agreement": 3})
    build_config(plan, before.model, world.server.credential, old, world.authority.key.public)


async def test_a_joined_task_with_a_profile_for_tests_is_refused(scene: Scene) -> None:
    """Also when it stands in the ledger already."""
    holder = scene.holders[0]
    with insecure_profiles():
        weak = scene.world.signed(scene.world.task.config, name="weak", **INSECURE_TASK)
        await holder.join(weak, scene.server.url)
        assert weak.token in {task.token for task, _ in await joined_tasks(holder)}
    with expect_problem(WRONG_SCHEME, "for tests only"):
        await joined_tasks(holder)


async def test_after_the_rotation_a_round_of_the_next_epoch_opens_and_the_old_one_stays_closed(scene: Scene) -> None:
    world, task = following(scene.world)
    assert [await state_of(holder, task) for holder in scene.holders] == ["closed"] * 3
    for index, holder in enumerate(scene.holders):
        holder.keyring.add(world.hpke[index])
        await holder.join(task, scene.server.url)
    async with FakeServer(task, committee=world.committee) as server:
        sent = [send_kahe(world, name, random_integers(D, seed, 1000)) for seed, name in enumerate("abc")]
        offer(world, server, sent)
        for holder in scene.holders:
            await destroy(holder, scene.world.task)
            async with line_to(server.url, holder) as line:
                await open_round(holder, task, 1, line)
            with expect_problem(EPOCH_DESTROYED):
                await scene.open(holder)
        parts: dict[int, bytes] = {}
        for index in range(2):
            _, body = server.shares[1, f"holder-{index}"]
            numbers = task.sharing.subshares_of(index)
            size = len(body) // len(numbers)
            parts |= {part: body[size * i :][:size] for i, part in enumerate(numbers)}
    left = combine(world, parts, sent) - np.sum([one.integers for one in sent], axis=0)
    assert np.abs(left).max() <= 8 * 6.4 * np.sqrt(3)


async def test_a_ledger_keeps_its_name(tmp_path: Path) -> None:
    names = []
    for path in ("a.db", "a.db", "b.db"):
        ledger = await Ledger.open(tmp_path / path)
        names.append(ledger.name)
        await ledger.close()
    assert names[0] == names[1] != names[2]
    assert {len(name) for name in names} == {16}
