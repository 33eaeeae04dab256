"""Shares that are refused, and rounds that do not open."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.numpy import load

from he_protocol import paths, problems
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import FailedBucket, ShareVector

from .conftest import both
from .world import World, a_unit, half_a_unit


@pytest.fixture
async def opening(world: World) -> World:
    """A world whose round 1 waits for shares."""
    await world.fill(3)
    await world.form(1)
    world.clock.now += 1
    await world.vote(1)
    return world


@both
async def test_the_same_share_again_and_another_one(opening: World) -> None:
    world = opening
    frame = await world.share(0, 1)
    assert (await world.put_share(0, 1, frame)).status == 201
    assert (await world.put_share(0, 1, frame)).status == 200
    size = world.task.scheme.share_layout(world.task.length).size
    other = await world.share(0, 1, {1: b"\1" + bytes(size - 1)})
    assert await world.problem(await world.put_share(0, 1, other)) == problems.WRONG_SHARE
    assert (await world.round(1)).shares == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_hash": bytes(32)}, problems.WRONG_TASK),
        ({"epoch": 9}, problems.WRONG_EPOCH),
        ({"round": 2}, problems.NOT_ADDRESSED),
        ({"manifest": bytes(32)}, problems.MANIFEST_MISMATCH),
        ({"holder": "holder-1"}, problems.NOT_ADDRESSED),
        ({"vectors": ()}, problems.WRONG_SHARE),
        ({"vectors": (ShareVector(1, 1, bytes(32)), ShareVector(1, 2, bytes(32)))}, problems.WRONG_SHARE),
        ({"failed": (FailedBucket(0, bytes(16), "malformed"),)}, problems.WRONG_SHARE),
        ({"vectors": (ShareVector(0, 2, bytes(32)), ShareVector(0, 1, bytes(32)))}, problems.WRONG_SHARE),
        ({"vectors": (ShareVector(0, 1, bytes(32)), ShareVector(0, 2, bytes(32)))}, problems.DIGEST_MISMATCH),
    ],
    ids=lambda value: value.slug if isinstance(value, problems.ProblemType) else next(iter(value)),
)
async def test_a_share_bound_to_something_else(
    opening: World, changes: dict[str, Any], expected: problems.ProblemType
) -> None:
    frame = await opening.share(0, 1, **changes)
    assert await opening.problem(await opening.put_share(0, 1, frame)) == expected
    assert (await opening.round(1)).shares == 0


async def test_a_share_with_a_wrong_signature(opening: World) -> None:
    frame = await opening.share(0, 1, signer=SigningKey.generate())
    assert await opening.problem(await opening.put_share(0, 1, frame)) == problems.BAD_SIGNATURE


async def test_a_share_with_a_residue_above_its_modulus(opening: World) -> None:
    size = opening.task.scheme.share_layout(opening.task.length).size
    frame = await opening.share(0, 1, {2: b"\xff" * size})
    assert await opening.problem(await opening.put_share(0, 1, frame)) == problems.RESIDUE_RANGE


async def test_shares_of_the_wrong_length(opening: World) -> None:
    frame = await opening.share(0, 1)
    assert await opening.problem(await opening.put_share(0, 1, frame[:-1])) == problems.WRONG_SIZE
    assert await opening.problem(await opening.put_share(0, 1, frame + b"x")) == problems.TRAILING_BYTES


async def test_a_share_under_another_holders_name(opening: World) -> None:
    frame = await opening.share(0, 1)
    path = paths.share_path(opening.task.id, 1, "holder-1")
    response = await opening.call(opening.holders[0], "PUT", path, data=frame)
    assert await opening.problem(response) == problems.NOT_ADDRESSED


async def test_a_head_that_is_not_ascii(opening: World) -> None:
    response = await opening.put_share(0, 1, b"\2\0\0\0\xff\xff")
    assert await opening.problem(response) == problems.MALFORMED


async def test_a_share_that_comes_too_late(opening: World) -> None:
    late = await opening.share(2, 1)
    opening.clock.now += opening.task.config.rounds.opening_seconds
    await opening.open(1, (0, 1))
    assert await opening.problem(await opening.put_share(2, 1, late)) == problems.WRONG_STATE


@both
async def test_without_a_quorum_a_round_waits_and_says_for_whom(opening: World) -> None:
    world = opening
    world.clock.now += 1
    await world.vote(1)  # the same again: nothing changes
    await world.put_share(1, 1, await world.share(1, 1))
    assert await world.work() == 0
    world.clock.now += 100 * world.task.config.rounds.opening_seconds
    assert await world.work() == 0
    status = await world.round(1)
    assert (status.state, status.failure) == ("opening", None)
    assert {one.holder: one.said for one in status.committee} == {"holder-0": "voted", "holder-1": "released"} | {
        "holder-2": ""
    }
    for holder in (0, 2):  # scheme `ckks` wants three that agree
        await world.put_share(holder, 1, await world.share(holder, 1))
    await world.work()
    assert (await world.round(1)).state == "published"


async def test_shares_come_after_votes(world: World) -> None:
    await world.fill(3)
    await world.form(1)
    await world.vote(1, (0,))
    frame = await world.share(0, 1)
    assert await world.problem(await world.put_share(0, 1, frame)) == problems.NOT_CERTIFIED
    await world.vote(1, (1,))
    assert (await world.put_share(0, 1, frame)).status == 201


@pytest.fixture
async def opening_of_four(empty_world: World) -> World:
    """The same with a committee of 2/4/3."""
    await empty_world.add_task_of_four()
    await empty_world.fill(3)
    await empty_world.certify(1)
    return empty_world


async def wrong_at_first(world: World) -> bytes:
    """Holder 0 lies about a part that holder 1 does not know: the round waits. The vector of its lie."""
    half = half_a_unit(world.task)
    await world.put_share(0, 1, await world.share(0, 1, {1: half}))
    await world.put_share(1, 1, await world.share(1, 1))
    assert await world.work() == 1
    assert (await world.round(1)).state == "opening"
    assert await world.work() == 0  # not tried again with the same shares
    return half


async def test_a_share_that_does_not_open_waits_for_the_others_and_is_contradicted(
    opening: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await wrong_at_first(opening)
    await opening.put_share(2, 1, await opening.share(2, 1))
    await opening.work()
    assert (await opening.round(1)).state == "published"
    assert "suspects=['holder-0']" in capsys.readouterr().out


async def test_where_no_honest_quorum_answers_nothing_is_published(opening: World) -> None:
    half = await wrong_at_first(opening)
    await opening.put_share(2, 1, await opening.share(2, 1, {0: half}))
    await opening.work()
    status = await opening.round(1)
    assert status.state == "failed"
    assert status.failure is not None
    assert status.failure.type == problems.COMBINE_REFUSED.urn
    assert "integers" in status.failure.detail


async def test_a_share_that_does_not_open_waits_for_an_honest_one_whatever_the_hour(opening_of_four: World) -> None:
    world = opening_of_four
    lie: dict[int | tuple[int, int], bytes] = {
        part: half_a_unit(world.task) for part in world.task.sharing.subshares_of(0)
    }
    await world.put_share(0, 1, await world.share(0, 1, lie))
    await world.put_share(1, 1, await world.share(1, 1))
    world.clock.now += 10 * world.task.config.rounds.opening_seconds
    await world.work()
    assert (await world.round(1)).state == "opening"
    await world.open(1, (2, 3))
    assert (await world.round(1)).state == "published"


@pytest.mark.parametrize("off", [False, True])
async def test_a_lie_that_is_a_sum_waits_for_agreement(
    opening: World, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheme `ckks`: a share is a term of the plaintext, so a holder can add one to every coordinate and nothing shows.

    Off: of two that answered it is believed. On: three must agree; with one against two there are two plausible sums.
    """
    world = opening
    if off:
        monkeypatch.setitem(vars(world.task.scheme), "binding", True)
    await world.put_share(0, 1, await world.share(0, 1, {1: a_unit(world.task)}))
    await world.put_share(1, 1, await world.share(1, 1))
    await world.work()
    assert (await world.round(1)).state == ("published" if off else "opening")
    if off:
        opened = load(await (await world.call(world.holders[0], "GET", paths.sum_path(world.task.id, 1))).read())
        assert set(opened["sum"].tolist()) == {4}  # 3 were sent
        return
    await world.put_share(2, 1, await world.share(2, 1))
    await world.work()
    status = await world.round(1)
    assert (status.state, status.version) == ("failed", 0)
    assert status.failure is not None
    assert "different sums" in status.failure.detail
