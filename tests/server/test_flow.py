"""One task from its upload to published models, over real HTTP, on both databases."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load

from he_protocol import documents, headers, paths, problems
from he_protocol.aggregation.optimiser import Optimiser
from he_protocol.identity.jws import token_hash, verify
from he_protocol.messages import FailedBucket, Manifest, PublishedModel, Receipt

from .conftest import both
from .world import World, half_a_unit


@both
async def test_a_round_from_uploads_to_the_next_model(world: World) -> None:
    task = world.task
    uploads = await world.fill(3, value=200)
    assert (await world.round(1)).state == "closed"
    assert (await world.round(2)).state == "open"
    assert await world.work() == 2  # folded, shown to key holders
    token, _ = await world.manifest(1)
    manifest = verify(token, Manifest, world.server_key.public)
    assert [entry.update_id for entry in manifest.updates] == sorted(upload.id for upload in uploads)
    assert {entry.header for entry in manifest.updates} == {token_hash(u.signed.header) for u in uploads}
    await world.open(1)
    status = await world.round(1)
    assert (status.state, status.version, status.shares, status.failure) == ("published", 1, 3, None)
    assert set(status.seconds) == {"collect", "screen", "sum", "wait_shares", "open"}
    response = await world.call(world.holders[0], "GET", paths.model_path(task.id))
    data = await response.read()
    said = verify(response.headers[headers.MODEL], PublishedModel, world.server_key.public)
    assert said == PublishedModel(task.hash, 1, hashlib.sha256(data).digest())
    assert response.headers["ETag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    # 3 clients sent 200 = 2.0 * scale; their mean is 2.0, and the initial model was 0.
    np.testing.assert_allclose(load(data)["w"], np.full((2, 2), 2.0, dtype=np.float32), atol=1e-6)
    opened = await world.call(world.holders[0], "GET", paths.sum_path(task.id, 1))
    np.testing.assert_array_equal(load(await opened.read())["sum"], np.full(task.length, 600))


@both
async def test_two_rounds_with_momentum(empty_world: World) -> None:
    world = empty_world
    await world.add_task(optimiser=Optimiser(learning_rate=0.5, momentum=0.5))
    for number in (1, 2):
        await world.fill(3, value=100, first=10 * number, base_version=number - 1)
        await world.work()
        await world.open(number)
    response = await world.call(world.holders[0], "GET", paths.model_path(world.task.id))
    # velocity 1, then 1.5; model 0.5, then 0.5 + 0.75.
    np.testing.assert_allclose(load(await response.read())["b"], [1.25, 1.25], atol=1e-6)
    status = await world.get(None, paths.task_path(world.task.id), documents.TaskStatus)
    assert (status.model_version, status.round) == (2, 3)


@pytest.mark.parametrize(("weighting", "expected"), [("fixed", 600 / 100 / 4.0), ("examples", 10.0)])
async def test_weighting(empty_world: World, weighting: str, expected: float) -> None:
    world = empty_world
    await world.add_task(weighting=weighting, weight_cap=4.0)
    await world.fill(3, value=200)
    await world.work()
    await world.open(1)
    response = await world.call(world.holders[0], "GET", paths.model_path(world.task.id))
    # examples: every coordinate sums to 6.0 and so does the weight coordinate, W = 6 / value_range = 0.6.
    np.testing.assert_allclose(load(await response.read())["w"], np.full((2, 2), expected), rtol=1e-6)


async def test_a_summed_weight_of_zero_is_not_divided_by(empty_world: World) -> None:
    world = empty_world
    await world.add_task(weighting="examples", weight_cap=4.0)
    await world.fill(3, value=0)
    await world.work()
    await world.open(1, (0, 1, 2))
    status = await world.round(1)
    assert status.state == "failed"
    assert status.failure is not None
    assert status.failure.type.endswith("combine-refused")


@both
async def test_the_receipt_is_signed_and_a_repeat_gets_the_same(world: World) -> None:
    client = world.person("ada", "client")
    upload = world.upload(client)
    first = await world.put(client, upload)
    again = await world.put(client, upload)
    assert (first.status, again.status) == (201, 200)
    assert await first.read() == await again.read()
    document = documents.UpdateReceipt(**await first.json())
    receipt = verify(document.receipt, Receipt, world.server_key.public)
    assert (receipt.update_id, receipt.header) == (upload.id, token_hash(upload.signed.header))
    assert (await world.round(1)).updates == 1


async def test_a_repeat_after_the_round_closed_gets_the_same_receipt(world: World) -> None:
    client = world.person("ada", "client")
    upload = world.upload(client)
    first = await world.put(client, upload)
    await world.fill(2)
    await world.work()
    await world.open(1)
    again = await world.put(client, upload)
    assert again.status == 200
    assert await again.read() == await first.read()
    assert len(await world.server.store.updates.of_round(2)) == 0


async def test_where_an_update_is(world: World) -> None:
    client = world.person("ada", "client")
    upload = world.upload(client)
    await world.put(client, upload)
    path = paths.update_path(world.task.id, upload.id.hex())
    status = await world.get(client, path, documents.UpdateStatus)
    assert (status.round, status.state, status.version) == (1, "open", 0)
    await world.fill(2)
    await world.work()
    await world.open(1)
    status = await world.get(client, path, documents.UpdateStatus)
    assert (status.state, status.version) == ("published", 1)


@both
async def test_a_bucket_that_does_not_open_is_dropped_and_named(empty_world: World) -> None:
    world = empty_world
    task = await world.add_task_of_four(min_clients=1, max_clients=3, buckets=3)
    people = [world.person(f"client-{i}", "client") for i in range(3)]
    uploads = [world.upload(person, 100 * (i + 1)) for i, person in enumerate(people)]
    for person, upload in zip(people, uploads, strict=True):
        assert (await world.put(person, upload)).status == 201
    await world.certify(1)
    _, manifest = await world.manifest(1)
    assert {entry.client: entry.bucket for entry in manifest.updates} == {p.name: i for i, p in enumerate(people)}
    failed = (FailedBucket(1, uploads[1].id, "digest-mismatch"),)
    await world.put_share(0, 1, await world.share(0, 1, failed=failed))
    await world.put_share(1, 1, await world.share(1, 1, {(2, 0): half_a_unit(task)}))
    await world.work()
    assert (await world.round(1)).state == "opening"  # the third holder may know better, and does about bucket 2
    await world.put_share(2, 1, await world.share(2, 1, {(2, 0): half_a_unit(task)}, failed=failed))
    await world.work()
    assert (await world.round(1)).state == "opening"  # and the fourth, about bucket 1: until it is late
    world.clock.now += task.config.rounds.opening_seconds
    await world.work()
    status = await world.round(1)
    assert (status.state, status.failure) == ("published", None)
    assert [one.bucket for one in status.dropped] == [1, 2]
    assert [one.updates for one in status.dropped] == [(uploads[1].id.hex(),), (uploads[2].id.hex(),)]
    named = status.dropped[0].failure
    assert named.type == problems.COMBINE_REFUSED.urn
    assert f"holder-0 cannot use update {uploads[1].id.hex()} (digest-mismatch)" in named.detail
    for i, (person, upload) in enumerate(zip(people, uploads, strict=True)):
        path = paths.update_path(task.id, upload.id.hex())
        seen = await world.get(person, path, documents.UpdateStatus)
        assert (seen.state, seen.failure is None) == ("published", i == 0)
    opened = load(await (await world.call(people[0], "GET", paths.sum_path(task.id, 1))).read())
    np.testing.assert_array_equal(opened["sum"], np.full(task.length, 100))
    assert opened["updates"].tolist() == [1]
    model = load(await (await world.call(people[0], "GET", paths.model_path(task.id))).read())
    np.testing.assert_allclose(model["w"], np.full((2, 2), 1.0))


async def test_a_round_without_a_bucket_that_opens_fails(empty_world: World) -> None:
    world = empty_world
    task = await world.add_task_of_four(min_clients=1, buckets=3)
    await world.fill(3)
    await world.certify(1)
    for holder in range(3):
        await world.put_share(holder, 1, await world.share(holder, 1, {0: half_a_unit(task)}))
    await world.work()
    status = await world.round(1)
    assert (status.state, status.dropped) == ("failed", ())
    assert status.failure is not None
    assert status.failure.type == problems.COMBINE_REFUSED.urn
    assert "no bucket opens" in status.failure.detail


async def test_an_etag_saves_the_download(world: World) -> None:
    path = paths.model_path(world.task.id)
    first = await world.call(world.holders[0], "GET", path)
    tag = first.headers["ETag"]
    for known in (tag, f"W/{tag}", tag[:-1] + '-gzip"', f'"x", {tag}', "*"):
        again = await world.call(world.holders[0], "GET", path, headers={"If-None-Match": known})
        assert (again.status, await again.read()) == (304, b"")
        assert again.headers[headers.MODEL] == first.headers[headers.MODEL]
    other = await world.call(world.holders[0], "GET", path, headers={"If-None-Match": '"stale"'})
    assert other.status == 200
    old = await world.call(world.holders[0], "GET", f"{path}?version=0")
    said = verify(old.headers[headers.MODEL], PublishedModel, world.server_key.public)
    assert (said.version, said.sha256) == (0, world.task.config.model.initial_model)


async def test_tasks_are_listed_and_a_repeat_changes_nothing(world: World) -> None:
    listed = await world.get(None, paths.TASKS, documents.TaskList)
    assert [(t.task, t.name, t.keys_ready) for t in listed.tasks] == [(world.task.id, "demo", False)]


async def test_bytes_of_a_finished_round_are_deleted(world: World) -> None:
    await world.fill(3)
    await world.work()
    await world.open(1)
    root = world.server.settings.data_dir / "blobs"
    folders = ("updates", "keys", "accumulators", "shares", "totals", "partial")
    left = [path for folder in folders for path in (root / folder).iterdir()]
    assert left == []


async def test_a_holder_downloads_the_key_parts(world: World) -> None:
    uploads = await world.fill(3)
    await world.work()
    pending = await world.get(world.holders[2], paths.openings_path(world.task.id), documents.PendingOpenings)
    assert pending.rounds == (documents.Waiting(1, "screen"),)
    response = await world.call(world.holders[2], "GET", paths.key_sections_path(world.task.id, 1))
    ordered = sorted(uploads, key=lambda upload: upload.id)
    assert await response.read() == b"".join(upload.body[world.task.section("sum").size :] for upload in ordered)
    for stage in ("vote", "release"):
        await (world.screen if stage == "vote" else world.vote)(1)
        pending = await world.get(world.holders[2], paths.openings_path(world.task.id), documents.PendingOpenings)
        assert pending.rounds == (documents.Waiting(1, stage),)
    await world.put_share(2, 1, await world.share(2, 1))
    pending = await world.get(world.holders[2], paths.openings_path(world.task.id), documents.PendingOpenings)
    assert pending.rounds == ()
