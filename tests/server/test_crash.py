"""Whatever is repeated or cut off: no acknowledged update is lost, and none counts twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientResponse
from safetensors.numpy import load

from he_protocol import documents, paths, problems
from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType
from he_server.jobs.garbage import collect_garbage
from he_server.jobs.worker import Worker
from he_server.rules.manifests import Plan
from he_server.rules.records import RoundRecord
from he_server.store.engine import Database
from he_server.store.folding import FoldingStore
from he_server.store.rounds import Lease, RoundStore
from he_server.store.shares import ShareStore
from he_server.store.updates import NewUpdate, UpdateStore

from .conftest import both
from .world import World

pytestmark = pytest.mark.usefixtures("both_sizes")

BY_ROUND = ("updates", "keys", "accumulators", "shares", "totals")
"""Folders of blobs that end with their round."""


async def _published_once(world: World) -> None:
    """Round 1 of three updates of 200 was published, and the model moved by their mean once."""
    status = await world.get(None, paths.task_path(world.task.id), documents.TaskStatus)
    assert status.model_version == 1
    assert (await world.round(1)).state == "published"
    response = await world.call(world.holders[0], "GET", paths.model_path(world.task.id))
    np.testing.assert_allclose(load(await response.read())["b"], [2.0, 2.0], atol=1e-6)


class Killed(BaseException):
    """What a kill looks like to the code that was running: nothing after it happens."""


def _kill(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    async def killed(*_args: object, **_kwargs: object) -> None:
        raise Killed

    monkeypatch.setattr(RoundStore, method, killed)


@both
@pytest.mark.parametrize("method", ["begin_opening", "publish"])
async def test_a_worker_killed_between_blobs_and_row(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    await world.fill(3, 200)
    if method == "begin_opening":
        await world.work()
    else:
        await world.certify(1)
        for holder in range(3):
            await world.put_share(holder, 1, await world.share(holder, 1))
    with monkeypatch.context() as patch:
        _kill(patch, method)
        with pytest.raises(Killed):
            await (world.screen(1) if method == "begin_opening" else world.work())
    assert await world.work() == 0  # the dead worker's lease holds
    world.clock.now += world.server.settings.lease_seconds
    await world.work()
    if method == "begin_opening":
        await world.open(1)
    await _published_once(world)


async def test_a_server_killed_after_publishing_leaves_nothing_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.fill(3, 200)
    await world.work()
    with monkeypatch.context() as patch:
        patch.setattr("he_server.jobs.outcomes.drop_round", _raise_killed)
        with pytest.raises(Killed):
            await world.open(1)
    await _published_once(world)
    await collect_garbage(world.server, 3600)
    root = world.server.settings.data_dir / "blobs"
    assert len(list((root / "keys").iterdir())) == 3  # too young to be swept
    _age(root)
    await collect_garbage(world.server, 3600)
    assert [p for name in BY_ROUND for p in (root / name).iterdir()] == []


async def _raise_killed(*_args: object) -> None:
    raise Killed


def _age(root: Path) -> None:
    old = time.time() - 7200
    for path in root.rglob("*"):
        os.utime(path, (old, old))


async def test_sweeping_keeps_what_rounds_need(world: World) -> None:
    await world.fill(3, 200)
    await world.certify(1)
    await world.put_share(0, 1, await world.share(0, 1))
    await world.fill(1, first=5)
    root = world.server.settings.data_dir / "blobs"
    (root / "partial" / "cut-off").write_bytes(b"half an upload")
    for folder in BY_ROUND:
        (root / folder / "orphan").write_bytes(b"bytes without a row")
    _age(root)
    await collect_garbage(world.server, 3600)
    assert not (root / "partial" / "cut-off").exists()
    assert [len(list((root / folder).iterdir())) for folder in BY_ROUND] == [1, 4, 0, 1, 1]
    await world.open(1, (1, 2))
    await _published_once(world)


@both
@pytest.mark.parametrize("guarded", [True, False])
async def test_a_sweep_waits_for_those_who_are_about_to_refer_to_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """A transaction that was held up for an hour: between its bytes and its commit, a sweep takes place elsewhere."""
    server, sweeps = world.server, list[asyncio.Task[None]]()
    keep, root = server.committer._write_blobs, server.settings.data_dir / "blobs"

    async def held_up(offers: Sequence[NewUpdate]) -> str:
        name = await keep(offers)
        _age(root)
        sweeps.append(asyncio.create_task(collect_garbage(server, 3600)))
        await asyncio.sleep(0.3)
        return name

    monkeypatch.setattr(server.committer, "_write_blobs", held_up)
    if not guarded:
        monkeypatch.setattr(Database, "alone", _together)
    await world.fill(1, 200)
    await asyncio.gather(*sweeps)
    assert [len(list((root / folder).iterdir())) for folder in ("updates", "keys")] == [int(guarded)] * 2


@asynccontextmanager
async def _together(_database: Database) -> AsyncIterator[None]:
    yield


@both
@pytest.mark.parametrize(
    ("owner", "method"),
    [(UpdateStore, "accept"), (FoldingStore, "checkpoint"), (ShareStore, "add")],
    ids=["update", "sum", "share"],
)
async def test_bytes_that_were_swept_before_their_row_are_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    """Held up for an hour between the bytes and the transaction."""
    commit, swept = getattr(owner, method), list[str]()

    async def held_up(self: Any, *args: Any) -> Any:
        if not swept:
            swept.append(method)
            _age(world.server.settings.data_dir / "blobs")
            await collect_garbage(world.server, 3600)
        return await commit(self, *args)

    monkeypatch.setattr(owner, method, held_up)
    for number in range(3):
        client = world.person(f"client-{number}", "client")
        upload = world.upload(client, 200)
        await _again_after(problems.REQUEST_TIMEOUT, world, partial(world.put, client, upload))
    await world.work()
    world.clock.now += world.server.settings.lease_seconds
    await world.certify(1)
    for holder in range(3):
        frame = await world.share(holder, 1)
        await _again_after(problems.REQUEST_TIMEOUT, world, partial(world.put_share, holder, 1, frame))
    await world.work()
    assert swept
    await _published_once(world)


async def _again_after(problem: ProblemType, world: World, send: Callable[[], Awaitable[ClientResponse]]) -> None:
    """Send, and after this problem send once more."""
    response = await send()
    if response.status != 201:
        assert await world.problem(response) is problem
        response = await send()
    assert response.status == 201


@both
async def test_an_upload_cut_between_bytes_and_row_is_simply_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    with monkeypatch.context() as patch:

        async def lost(*_args: object) -> None:
            raise ProblemError(problems.DATABASE_UNAVAILABLE, "lost")

        patch.setattr(UpdateStore, "accept", lost)
        assert await world.problem(await world.put(ada, upload)) == problems.DATABASE_UNAVAILABLE
    assert (await world.put(ada, upload)).status == 201
    assert (await world.round(1)).updates == 1


@both
async def test_an_answer_that_was_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    accept = UpdateStore.accept
    with monkeypatch.context() as patch:

        async def accepted_then_lost(self: UpdateStore, *args: Any) -> None:
            await accept(self, *args)
            raise ProblemError(problems.DATABASE_UNAVAILABLE, "the connection broke after COMMIT")

        patch.setattr(UpdateStore, "accept", accepted_then_lost)
        assert (await world.put(ada, upload)).status == 503
    assert (await world.put(ada, upload)).status == 200
    await world.fill(2)
    await world.work()
    await world.open(1)
    assert (await world.round(1)).state == "published"  # the bytes were still there


@both
async def test_a_lease_keeps_others_out_and_a_lost_one_changes_nothing(world: World) -> None:
    await world.fill(3, 200)
    store = world.server.store
    (closed,) = [record for record in await store.rounds.live() if record.state == "closed"]
    now = world.clock()
    first = await store.rounds.lease(closed, now, 60)
    assert first is not None
    assert await store.rounds.lease(closed, now + 59, 60) is None
    assert await store.rounds.renew(first, now + 30, 60)
    assert await store.rounds.lease(closed, now + 61, 60) is None
    second = await store.rounds.lease(closed, now + 90, 60)
    assert second is not None
    assert not await store.rounds.renew(first, now + 91, 60)
    with pytest.raises(ProblemError) as caught:
        await store.rounds.begin_opening(
            first, world.server_key.signing.sign(world.config()), Plan({0: 0}, {}), now, {}
        )
    assert caught.value.problem == problems.WRONG_STATE
    await store.rounds.release(first, 0)
    assert await store.rounds.lease(closed, now + 92, 60) is None  # a lost lease releases nothing
    await store.rounds.release(second, 0)
    await world.work()
    await world.open(1)
    await _published_once(world)


@both
async def test_two_workers_do_not_do_the_same_round_twice(world: World) -> None:
    import asyncio

    await world.fill(3, 200)
    other = Worker(world.server)
    for _ in range(3):
        await asyncio.gather(world.worker.step(), other.step())
    await world.screen(1)
    assert (await world.round(1)).state == "opening"
    await world.vote(1)
    for holder in range(3):
        await world.put_share(holder, 1, await world.share(holder, 1))
    for _ in range(3):
        await asyncio.gather(world.worker.step(), other.step())
    await _published_once(world)


@both
async def test_a_version_is_published_once(world: World) -> None:
    """Also by a worker that took up the next round and knows of the version before only."""
    store = world.server.store

    async def lease_of(number: int) -> Lease:
        await world.fill(3, first=3 * number, base_version=number - 1)
        await world.form(number)
        lease = await store.rounds.lease(await store.rounds.get(world.task.id, number), world.clock(), 60)
        assert lease is not None
        return lease

    await store.rounds.publish(await lease_of(1), 1, "0" * 64, world.clock(), {})
    second = await lease_of(2)
    with pytest.raises(ProblemError) as caught:
        await store.rounds.publish(second, 1, "1" * 64, world.clock(), {})
    assert caught.value.problem == problems.WRONG_STATE
    assert (await world.round(2)).state == "opening"


async def test_bytes_that_vanished_fail_their_round(world: World) -> None:
    await world.fill(3)
    for path in (world.server.settings.data_dir / "blobs" / "updates").iterdir():
        path.unlink()
    await world.work()
    status = await world.round(1)
    assert status.failure is not None
    assert status.failure.type == problems.INTERNAL.urn


async def test_illegal_moves_change_nothing(world: World) -> None:
    await world.fill(3)
    store = world.server.store
    (closed,) = [record for record in await store.rounds.live() if record.state == "closed"]
    lease = await store.rounds.lease(closed, world.clock(), 60)
    assert lease is not None
    with pytest.raises(ProblemError) as caught:
        await store.rounds.publish(lease, 1, "0" * 64, world.clock(), {})
    assert caught.value.problem == problems.WRONG_STATE
    record: RoundRecord = await store.rounds.get(world.task.id, 1)
    assert (record.state, (await store.models.get(world.task.id)).version) == ("closed", 0)
