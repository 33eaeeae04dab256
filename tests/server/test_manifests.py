"""Which updates go into a manifest: the pure part, and what becomes of rounds, sums and clients."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from safetensors.numpy import load
from typer.testing import CliRunner

from he_protocol import documents, paths, problems
from he_protocol.arithmetic.residues import pack
from he_protocol.documents import Failure
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Credential, Exclusion, Objection, Screening
from he_server.blobs.local import LocalBlobs
from he_server.blobs.vectors import fold_updates, is_intact, merge_sums, read_total, sum_layout
from he_server.cli.main import app
from he_server.rules.manifests import Circumstances, check_update, excluded_by_holders, plan_round
from he_server.rules.records import UpdateRecord, waiting_for
from tests.support import parties
from tests.support.revocations import revoked

from .conftest import both
from .world import World

WHY = Failure(problems.STALE_UPDATE.urn, "too old")


def updates(*buckets: int) -> list[UpdateRecord]:
    """One update for each number, in that bucket."""
    return [
        UpdateRecord(f"{i:032x}", 1, f"client-{i}", "", "00" * 32, "", 0, 0.0, "", "", 0, bucket)
        for i, bucket in enumerate(buckets)
    ]


def ids(*numbers: int) -> dict[str, Failure]:
    return {f"{i:032x}": WHY for i in numbers}


def small(**plan: Any) -> parties.World:
    shape = {"scheme": "kahe", "profile": "kahe-30", "min_clients": 2, "max_clients": 9, "buckets": 3}
    return parties.World(4, shape | {"agreement": 3} | plan)


def test_what_is_left_out_changes_nothing_about_the_others() -> None:
    plan = plan_round(small().task, updates(0, 1, 2, 0, 1, 2, 0), ids(6))
    assert plan.buckets == {0: 0, 1: 1, 2: 2}
    assert [one.update for one in plan.documents] == list(ids(6))


def test_buckets_that_become_too_small_are_merged() -> None:
    plan = plan_round(small().task, updates(0, 1, 2, 0, 1, 2), ids(2))
    assert (plan.buckets, plan.count) == ({0: 0, 1: 1, 2: 0}, 2)
    assert len(plan.entries(updates(0, 1, 2, 0, 1, 2))) == 5


def test_a_bucket_that_loses_all_its_updates_is_no_bucket() -> None:
    plan = plan_round(small().task, updates(0, 1, 2, 0, 1, 2), ids(1, 4))
    assert (plan.buckets, plan.count) == ({0: 0, 2: 1}, 2)


def test_what_cannot_be_taken_out_takes_its_bucket_with_it_and_no_other() -> None:
    plan = plan_round(small().task, updates(0, 1, 2, 0, 1, 2), ids(1), frozenset(ids(1)))
    told = {one.update: one.failure.type for one in plan.documents}
    assert told == {f"{1:032x}": WHY.type, f"{4:032x}": problems.EXCLUDED_UPDATE.urn}
    assert plan.buckets == {0: 0, 2: 1}


def test_too_few_are_left() -> None:
    with pytest.raises(ProblemError) as caught:
        plan_round(small(min_clients=3).task, updates(0, 0, 0), ids(2))
    assert caught.value.problem == problems.TOO_FEW_CLIENTS
    assert "too old" in caught.value.detail


def _said(made: parties.World, holder: int, *updates: int) -> Screening:
    out = tuple(Exclusion(bytes.fromhex(f"{i:032x}"), problems.DIGEST_MISMATCH.slug) for i in updates)
    return Screening(made.task.hash, 1, 1, bytes(32), f"holder-{holder}", 0, 0, out)


def test_more_holders_must_say_it_than_may_lie() -> None:
    """With one voice enough, one liar would keep any update out."""
    made = small()
    assert made.task.committee.needed_to_exclude == 2
    found = excluded_by_holders(made.task, [_said(made, 0, 1, 2), _said(made, 1, 2), _said(made, 1, 1, 2)])
    assert set(found) == {f"{i:032x}" for i in (1, 2)}
    assert excluded_by_holders(made.task, [_said(made, 0, 1), _said(made, 0, 1)]) == {}  # one voice, twice
    assert "holder-0, holder-1" in found[f"{2:032x}"].detail


@pytest.mark.parametrize("what", ["", "stale", "old", "expired", "revoked"])
async def test_what_the_server_sees_for_itself(world: World, what: str) -> None:
    (upload,) = await world.fill(1)
    (update,) = await world.server.store.updates.of_round((await world.server.store.rounds.get(world.task.id, 1)).id)
    now = Circumstances(int(world.clock()), 0)
    expected = {
        "": (now, None),
        "stale": (Circumstances(now.formed, 2), problems.STALE_UPDATE),
        "old": (Circumstances(now.formed + world.task.config.rounds.update_lifetime + 1, 0), problems.STALE_UPDATE),
        "expired": (
            Circumstances(read_unverified(update.credential, Credential).exp + 1, 0),
            problems.EXPIRED_CREDENTIAL,
        ),
        "revoked": (
            Circumstances(now.formed, 0, revoked(world.authority, upload.signed.credential, now=world.clock())),
            problems.REVOKED_KEY,
        ),
    }
    when, problem = expected[what]
    if problem is None:
        check_update(world.task, world.authority.public, update, when)
        return
    with pytest.raises(ProblemError) as caught:
        check_update(world.task, world.authority.public, update, when)
    assert caught.value.problem is problem


@pytest.mark.parametrize(("scheme", "profile"), [("kahe", "kahe-30"), ("kahe", "kahe-14"), ("ckks", "ckks-8192")])
def test_what_is_taken_out_of_a_sum_leaves_exactly_the_others(tmp_path: Path, scheme: str, profile: str) -> None:
    task = parties.World(3, {"scheme": scheme, "profile": profile, "scale": 16.0}).task
    layout, blobs, random = sum_layout(task), LocalBlobs(tmp_path), np.random.default_rng(1)
    blobs.prepare()
    moduli = np.array(layout.moduli, dtype=np.uint64)[:, None]
    vectors = [random.integers(0, moduli, layout.shape, dtype=np.uint64) for _ in range(5)]
    vectors[1][:] = moduli - 1  # the largest residues, and none at all
    vectors[2][:] = 0
    for number, vector in enumerate(vectors):
        blobs.put(str(number), pack(vector, layout))
    fold_updates(task, blobs, None, [(str(i), 0) for i in range(3)], "first")
    fold_updates(task, blobs, None, [(str(i), 0) for i in (3, 4)], "second")
    merge_sums(task, blobs, ["first", "second"], "total", [("1", 0), ("2", 0), ("3", 0)])
    got = read_total(task, blobs, "total", 0, layout.polynomials)
    assert np.array_equal(got, (vectors[0] + vectors[4]) % moduli)


def test_bytes_that_are_not_what_was_signed_are_not_taken_out(tmp_path: Path) -> None:
    import hashlib

    task = small().task
    blobs, data = LocalBlobs(tmp_path), bytes(sum_layout(task).size)
    blobs.prepare()
    digest = hashlib.sha256(data).digest()
    blobs.put("good", data)
    blobs.put("changed", b"\1" + data[1:])
    blobs.put("short", data[:-1])
    good = [name for name in ("good", "changed", "short", "gone") if is_intact(task, blobs, name, 0, digest)]
    assert good == ["good"]


# In a round


async def told(world: World, upload_id: bytes) -> documents.UpdateStatus:
    found = await world.get(world.holders[0], paths.update_path(world.task.id, upload_id.hex()), documents.UpdateStatus)
    assert isinstance(found, documents.UpdateStatus)
    return found


@both
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_holders_leave_an_update_out(empty_world: World, kept: bool) -> None:
    """Where its bytes were not kept, the updates that it was added up with go too, and their clients are told."""
    world = empty_world
    if not kept:
        world.server.settings = world.server.settings.model_copy(update={"retain_bytes": 0})
    await world.add_task_of_four(min_clients=2, max_clients=6, buckets=3)
    uploads = await world.fill(6, 100)
    await world.work()
    bad = uploads[0]
    await world.screen(1, None, **{bad.id.hex(): problems.MALFORMED.slug})
    await world.vote(1)
    await world.open(1)
    status = await world.round(1)
    assert status.state == "published"
    gone = {bad.id.hex()} if kept else {bad.id.hex(), uploads[3].id.hex()}
    assert {one.update for one in status.excluded} == gone
    opened = load(await (await world.call(world.holders[0], "GET", paths.sum_path(world.task.id, 1))).read())
    np.testing.assert_array_equal(opened["sum"], np.full(world.task.length, 100 * (6 - len(gone))))
    client = world.person("client-0", "client")
    seen = await world.get(client, paths.update_path(world.task.id, bad.id.hex()), documents.UpdateStatus)
    assert seen.failure is not None
    assert seen.failure.type == problems.MALFORMED.urn


async def objects(world: World, holder: int, problem: str, detail: str, seen: tuple[int, int] = (0, 0)) -> None:
    token, manifest = await world.manifest(1)
    said = Objection(
        **world._about(token, holder), round=manifest.round, seen_opening=seen[0], seen_version=seen[1],
        problem=problem, detail=detail,
    )  # fmt: skip
    answer = await world.put_answer(holder, 1, world.holders[holder].key.sign(said))
    assert answer.status == 201, await answer.text()


@both
async def test_status_says_who_is_missing_and_who_refused_with_what(world: World) -> None:
    await world.fill(3)
    await world.work()
    await world.screen(1, (0,))
    await objects(world, 1, problems.NUMBER_USED.slug, "opening 1")
    status = await world.round(1)
    assert waiting_for(status) == "holder-0: screened; holder-1: refused (opening 1); holder-2: missing"


@both
async def test_a_round_is_given_up_by_an_operator(world: World) -> None:
    uploads = await world.fill(3)
    await world.work()
    url, folder = world.server.settings.database_url, world.server.settings.data_dir
    where = ["--data-dir", str(folder), "--database-url", url]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, *where])
        structlog.reset_defaults()  # it logs to the standard output of its own
        assert result.exit_code == 0, result.output
        return result.output

    await asyncio.to_thread(run, "abandon", world.task.id[:12], "1", "--yes")
    assert (await world.round(1)).state == "failed"
    client = world.person("client-0", "client")
    seen = await world.get(client, paths.update_path(world.task.id, uploads[0].id.hex()), documents.UpdateStatus)
    assert seen.failure is not None
    assert seen.failure.type == problems.ABANDONED.urn
    await world.fill(3, first=3)
    await world.work()
    await world.open(2)
    assert (await world.round(2)).state == "published"


@both
async def test_a_server_goes_on_after_what_holders_have_seen(world: World) -> None:
    """As one that was restored from an older backup: both holders refuse, and say where they are."""
    await world.fill(3)
    await world.work()
    for holder in (0, 1):
        await objects(world, holder, problems.STALE_UPDATE.slug, "the model went back", (7, 5))
    assert await world.server.store.answers.seen_by_holders(world.task) == (7, 5)
    folder, url = world.server.settings.data_dir, world.server.settings.database_url

    def run() -> str:
        arguments = ["recover", world.task.id, "--data-dir", str(folder), "--database-url", url]
        result = CliRunner().invoke(app, arguments)
        structlog.reset_defaults()
        assert result.exit_code == 0, result.output
        return result.output

    assert "next opening is 8, the newest model version 7" in await asyncio.to_thread(run)
    assert (
        await world.server.store.models.get(world.task.id)
    ).version == 7  # on 5 they may have voted already, and 6 may have been published
    with pytest.raises(ProblemError):
        await world.server.store.rounds.recover(world.task.id, 6, 6, 0.0)
    await world.fill(3, first=3, base_version=7)
    await world.work()
    await world.work()
    assert (await world.round(1)).failure is not None  # its updates are too old now
    await world.open(2)
    status = await world.round(2)
    assert (status.state, status.version, status.opening, status.failure) == ("published", 8, 8, None)
