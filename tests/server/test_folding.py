"""Updates are folded while they arrive: none is lost, none counts twice, and disk and memory stay small."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from sqlalchemy import ColumnElement

from he_protocol import paths, problems
from he_protocol.arithmetic.residues import pack
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.schemes.registry import load_scheme
from he_protocol.task import Task
from he_server.blobs.keys import accumulator_blob, total_blob, update_blob
from he_server.blobs.local import LocalBlobs, LocalWriter
from he_server.blobs.vectors import fold_updates, read_total, stored_type, sum_layout
from he_server.jobs import folding as folding_module
from he_server.jobs import forming
from he_server.jobs.worker import Worker
from he_server.rules.rounds import FOLD_BATCH
from he_server.services.context import open_server
from he_server.store import folding
from he_server.store.folding import Fold, FoldingStore
from he_server.store.rounds import RoundStore
from he_server.store.schema import accumulators
from he_testing.plans import changed

from .conftest import both
from .world import UNIT, World

pytestmark = pytest.mark.usefixtures("both_sizes")

LONG = 100_000
"""Seconds: rounds do not end by themselves here."""
SCALE = 100.0
"""Of the world's tasks: an update may say value_range * SCALE."""


async def _task(world: World, clients: int) -> None:
    """One in which every client may say what `_send` has it say."""
    await world.add_task(max_clients=clients, collect_seconds=LONG, value_range=4.0 ** (clients - 1) / SCALE)


async def _send(world: World, first: int, count: int) -> None:
    """Update i says 4^i: in the sum's base-4 digits each update shows how often it was counted."""
    for i in range(first, first + count):
        await world.fill(1, 4**i, first=i)


def _digits(total: int, count: int) -> list[int]:
    return [total // 4**i % 4 for i in range(count)]


def _keep_nothing(world: World) -> None:
    """Updates go as soon as they are added up."""
    world.server.settings = world.server.settings.model_copy(update={"retain_bytes": 0})


async def _counted(world: World, clients: int) -> list[int]:
    """How often every update is in the published sum of round 1."""
    await world.open(1)
    assert (await world.round(1)).state == "published"
    response = await world.call(world.holders[0], "GET", paths.sum_path(world.task.id, 1))
    (total,) = set(load(await response.read())["sum"].reshape(-1).tolist())
    return _digits(total, clients)


class Killed(BaseException):
    """What a kill looks like to the code that was running: nothing after it happens."""


def _kill(patch: pytest.MonkeyPatch, owner: Any, name: str, when: str) -> None:
    original = getattr(owner, name)

    async def killed_later(*args: Any) -> None:
        if when == "after":
            await original(*args)
        raise Killed

    def killed(*args: Any) -> None:
        if when == "after":
            original(*args)
        raise Killed

    patch.setattr(owner, name, killed_later if inspect.iscoroutinefunction(original) else killed)


# A kill before a step finds what the step before it left.
@both
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long), "after"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (FoldingStore, "begin"),
        (folding_module, "fold_updates"),
        (LocalWriter, "commit"),
        (FoldingStore, "checkpoint"),
        (LocalBlobs, "delete"),
        (folding_module, "delete_blobs"),
        (RoundStore, "begin_screening"),
        (forming, "merge_sums"),
        (RoundStore, "begin_opening"),
        (forming, "delete_blobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_crash_at_every_step(
    empty_world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, when: str
) -> None:
    world, clients = empty_world, 10
    if owner is LocalBlobs:
        _keep_nothing(world)
    await _task(world, clients)
    await _send(world, 0, FOLD_BATCH)
    folding = step != "begin_screening" and owner is not forming and step != "begin_opening"
    if not folding:
        await world.work()
        await _send(world, FOLD_BATCH, clients - FOLD_BATCH)
    if step == "begin_opening" or owner is forming:
        await world.work()
    with monkeypatch.context() as patch:
        _kill(patch, owner, step, when)
        with pytest.raises(Killed):
            await (world.screen(1) if step == "begin_opening" or owner is forming else world.work())
    if folding:
        await _send(world, FOLD_BATCH, clients - FOLD_BATCH)
    world.clock.now += world.server.settings.lease_seconds
    world.worker = Worker(world.server)
    await world.work()
    assert await _counted(world, clients) == [1] * clients


@both
async def test_two_workers_fold_at_the_same_time(empty_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world, clients = empty_world, 2 * FOLD_BATCH + 1
    await _task(world, clients)
    other = Worker(open_server(world.server.settings, world.clock))
    began, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        began.set()
        assert go_on.wait(60)
        fold_updates(*args)

    await _send(world, 0, FOLD_BATCH)
    with monkeypatch.context() as patch:
        patch.setattr(folding_module, "fold_updates", slow)
        first = asyncio.create_task(world.worker.step())
        assert await asyncio.to_thread(began.wait, 60)
    await _send(world, FOLD_BATCH, FOLD_BATCH)
    assert await other.step()
    assert not await other.step()  # the first batch is the other's
    go_on.set()
    assert await first
    sums = await world.server.store.folding.accumulators((await world.server.store.rounds.get(world.task.id, 1)).id)
    assert [item.updates for item in sums] == [FOLD_BATCH, FOLD_BATCH]
    await _send(world, clients - 1, 1)
    for _ in range(4):
        await asyncio.gather(world.worker.step(), other.step())
    assert await _counted(world, clients) == [1] * clients
    await other._store.close()


def _unguarded(fold: Fold) -> ColumnElement[bool]:
    return accumulators.c.id == fold.accumulator


@both
@pytest.mark.parametrize("guarded", [True, False])
async def test_a_worker_that_lost_its_accumulator_changes_nothing(
    empty_world: World, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Without the check of lease and old blob, the late worker's sum wipes out what others folded since."""
    world, clients = empty_world, 2 * FOLD_BATCH
    await _task(world, clients)
    server, store = world.server, world.server.store
    await _send(world, 0, FOLD_BATCH)
    current = await store.rounds.get(world.task.id, 1)
    late = await store.folding.begin(current.id, 0, world.clock(), 60)
    assert late is not None
    terms = [(update_blob(claim.blob), claim.position) for claim in late.updates]
    fold_updates(world.task, server.blobs, None, terms, accumulator_blob("late"))
    world.clock.now += 60
    assert await world.work() == 1
    assert not await store.folding.renew(late, world.clock(), 60)
    await _send(world, FOLD_BATCH, clients - FOLD_BATCH)
    assert await store.folding.begin(current.id, 0, world.clock(), 60) is not None  # somebody folds the next batch
    world.clock.now += 60
    progress = await folding_module.fold(
        world.server, world.task, await store.rounds.get(world.task.id, 1), world.clock()
    )
    assert progress == "folded"
    if guarded:
        with pytest.raises(ProblemError) as caught:
            await store.folding.checkpoint(late, "late", _kept)
        assert caught.value.problem == problems.WRONG_STATE
    else:
        monkeypatch.setattr(folding, "held", _unguarded)
        await store.folding.checkpoint(late, "late", _kept)
    await world.work()
    honest, wiped = [1] * clients, [1] * FOLD_BATCH + [0] * FOLD_BATCH
    assert await _counted(world, clients) == (honest if guarded else wiped)


async def _kept() -> None:
    """The blob is there."""


async def test_a_late_result_is_discarded(empty_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = empty_world
    await _task(world, FOLD_BATCH)
    await _send(world, 0, FOLD_BATCH)
    other, loop = Worker(world.server), asyncio.get_running_loop()

    def overtaken(*args: Any) -> None:
        fold_updates(*args)
        monkeypatch.setattr(folding_module, "fold_updates", fold_updates)
        world.clock.now += world.server.settings.lease_seconds
        assert asyncio.run_coroutine_threadsafe(other.step(), loop).result(60)

    monkeypatch.setattr(folding_module, "fold_updates", overtaken)
    assert await world.worker.step()
    assert _sizes(world, "accumulators") == [_accumulator_bytes(world.task)]  # the late one's is gone
    await world.work()
    assert await _counted(world, FOLD_BATCH) == [1] * FOLD_BATCH


def _accumulator_bytes(task: Task) -> int:
    layout = sum_layout(task)
    return layout.rows * layout.degree * stored_type(layout).itemsize


def _sizes(world: World, folder: str) -> list[int]:
    directory = world.server.settings.data_dir / "blobs" / folder
    return [path.stat().st_size for path in directory.iterdir()] if directory.is_dir() else []


async def test_the_disk_holds_a_few_updates_and_accumulators(
    empty_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is kept to be taken out again. What key holders fetch stays until the round ends, and is not
    counted."""
    world, clients, seen = empty_world, 60, []
    _keep_nothing(world)
    await world.add_task(max_clients=clients, collect_seconds=LONG)
    checkpoint = FoldingStore.checkpoint

    async def measured(self: FoldingStore, *args: Any) -> None:
        seen.append(sum(sum(_sizes(world, folder)) for folder in ("updates", "accumulators", "totals", "partial")))
        await checkpoint(self, *args)

    monkeypatch.setattr(FoldingStore, "checkpoint", measured)  # old and new are both there: the fullest moment
    for i in range(clients):
        await world.fill(1, first=i)
        await world.work()
    assert len(seen) >= clients // FOLD_BATCH
    assert max(seen) <= FOLD_BATCH * world.task.section("sum").size + 2 * _accumulator_bytes(world.task)
    assert _sizes(world, "updates") == []


async def test_what_waits_too_long_is_folded_before_a_batch_is_full(world: World) -> None:
    _keep_nothing(world)
    await world.fill(2)
    assert await world.work() == 0
    world.clock.now += 3
    assert await world.work() == 1
    assert _sizes(world, "updates") == []


async def test_updates_are_kept_to_be_taken_out_again_while_there_is_room(
    empty_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all tasks together as many bytes as the setting says, and only while the disk is far from full."""
    world = empty_world
    await world.add_task(max_clients=3 * FOLD_BATCH, collect_seconds=LONG)
    size = world.task.section("sum").size
    room = {"retain_bytes": FOLD_BATCH * size}
    world.server.settings = world.server.settings.model_copy(update=room)
    await world.fill(FOLD_BATCH)
    await world.work()
    assert sum(_sizes(world, "updates")) == FOLD_BATCH * size
    await world.fill(FOLD_BATCH, first=FOLD_BATCH)
    await world.work()
    assert sum(_sizes(world, "updates")) == FOLD_BATCH * size  # the second batch is not kept
    free = shutil.disk_usage(world.server.settings.data_dir).free
    assert not await folding_module.retains(world.server)
    more = {"retain_bytes": 2**40}
    world.server.settings = world.server.settings.model_copy(update=more)
    assert await folding_module.retains(world.server)
    world.server.settings = world.server.settings.model_copy(update=more | {"min_free_bytes": free})
    assert not await folding_module.retains(world.server)


@both
async def test_buckets_are_merged_at_the_deadline(empty_world: World) -> None:
    """Five updates in three buckets of two at least: the last one joins the first."""
    world = empty_world
    await world.add_task(max_clients=9, buckets=3)
    for i in range(5):
        await world.fill(1, 4**i, first=i)
    world.clock.now += 60
    await world.form(1)
    _, manifest = await world.manifest(1)
    assert {entry.client: entry.bucket for entry in manifest.updates} == {
        f"client-{i}": bucket for i, bucket in enumerate([0, 1, 0, 0, 1])
    }
    current = await world.server.store.rounds.get(world.task.id, 1)
    assert {update.client: update.bucket for update in await world.server.store.updates.of_round(current.id)} == {
        entry.client: entry.bucket for entry in manifest.updates
    }
    layout = sum_layout(world.task)
    for bucket, members in enumerate([(0, 2, 3), (1, 4)]):
        total = read_total(world.task, world.server.blobs, total_blob(current.id, bucket), 0, layout.polynomials)
        value = sum(4**i for i in members) * UNIT
        for limb, modulus in enumerate(layout.moduli):
            assert (total[:, limb] == value % modulus).all()
    assert _sizes(world, "accumulators") == []


async def test_damaged_bytes_fail_a_closed_round(world: World) -> None:
    await world.fill(3)
    for path in (world.server.settings.data_dir / "blobs" / "updates").iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    await world.work()
    failure = (await world.round(1)).failure
    assert failure is not None
    assert failure.type == problems.INTERNAL.urn


def _large_task(world: World, parameters: int) -> Task:
    fingerprint = load_scheme("kahe", "kahe-30").profile.fingerprint
    config = changed(
        world.config(),
        scheme="kahe",
        profile="kahe-30",
        fingerprint=fingerprint,
        tensors=(TensorSpec("w", (parameters,)),),
    )
    return Task(config, "", bytes(32))


async def test_folding_holds_blocks_only(empty_world: World, tmp_path: Path) -> None:
    """Five million parameters, forty updates: the sum alone is 40 MB in the kernel's words."""
    task, blobs = _large_task(empty_world, 5_000_000), LocalBlobs(tmp_path / "large")
    blobs.prepare()
    layout = sum_layout(task)
    blobs.put("update", pack(np.ones(layout.shape, dtype=np.uint64), layout))
    fold_updates(task, blobs, None, [("update", 0)], "before")  # compiles
    tracemalloc.start()
    try:
        fold_updates(task, blobs, "before", [("update", 0)] * 40, "after")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20
    assert blobs.size("after") == 4 * layout.rows * layout.degree
    assert (read_total(task, blobs, "after", 0, layout.polynomials) == 41).all()
