"""What is opened is checked as a result: wrong shares and wrong updates, from encrypted updates to the next model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_holder.agent import Agent
from he_protocol.arithmetic.residues import pack, unpack
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes import kahe
from he_protocol.task import Task
from he_server.blobs.local import LocalBlobs
from he_server.blobs.store import BlobStore
from he_server.blobs.vectors import Released
from he_server.jobs import opening
from he_server.jobs.opening import Checked, Waiting, check_buckets
from tests.support.openings import send_kahe
from tests.support.poison import poisoned
from tests.support.service import HOLDERS, Service

from .test_buckets import BUCKETS, ERROR, SCALE, D, Played, clients, world

Vectors = dict[tuple[int, int], bytes]


def one_more(task: Task, bucket: int, part: int) -> Callable[[Vectors], None]:
    """A lie: one coefficient of one part is larger by one. The opened key is as short as before."""

    def lie(vectors: Vectors) -> None:
        vectors[bucket, part] = added(task, vectors[bucket, part])

    return lie


def added(task: Task, packed: bytes) -> bytes:
    layout = task.scheme.share_layout(task.length)
    vector = unpack(packed, layout).copy()
    vector.reshape(-1)[0] = (vector.reshape(-1)[0] + 1) % kahe.WORD
    return pack(vector, layout)


def only_known_to(made: Any, holder: int, other: int) -> int:
    """A part that one holder knows and another does not."""
    return min(set(made.task.sharing.subshares_of(holder)) - set(made.task.sharing.subshares_of(other)))


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def checked(played: Played, released: list[Released], *, last: bool = False) -> Checked | Waiting:
    return check_buckets(played.made.task, played.blobs, 1, played.request.manifest, released, last=last)


@pytest.mark.parametrize("off", ["", "padding"])
def test_a_holder_that_adds_one_to_a_coefficient(
    blobs: BlobStore, off: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Holder 2 is one of the first two: the round waits, and the third shows who lied. Off: its noise is published."""
    made = world()
    round_ = Played(made, clients(made), blobs)
    liar = round_.released(2, one_more(made.task, 1, only_known_to(made, 2, 0)))
    if off:
        monkeypatch.setattr(kahe, "check_padding", lambda *_: None)
        monkeypatch.setattr(opening, "check_range", lambda *_: None)
        wrong = round_.open([round_.released(0), liar])
        assert wrong.dropped == []
        assert np.abs(wrong.model["w"]).max() > 3.9  # honest: below 1; value_range is 4
        return
    outcome = checked(round_, [round_.released(0), liar])
    assert isinstance(outcome, Waiting)
    assert "bucket 1" in outcome.detail
    everybody = [round_.released(0), round_.released(1), liar]
    assert isinstance(checked(round_, everybody), Checked)  # and it need not be the last
    opened = round_.open(everybody)
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    told = capsys.readouterr().out
    assert "suspects=['holder-2']" in told
    assert "holder-0" not in told
    assert "holder-1" not in told


@pytest.mark.parametrize("off", [False, True])
def test_a_model_without_padding_is_checked_by_its_range(
    tmp_path: Path, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.test_buckets.D", 2048)
    made = world()
    sent = [send_kahe(made, f"client-{i}", np.full(2048, 100)) for i in range(8)]
    round_ = Played(made, sent, LocalBlobs(tmp_path))
    if off:
        monkeypatch.setattr(opening, "check_range", lambda *_: None)
    liar = round_.released(2, one_more(made.task, 1, only_known_to(made, 2, 0)))
    outcome = checked(round_, [round_.released(0), liar])
    assert isinstance(outcome, Checked if off else Waiting)
    if isinstance(outcome, Waiting):
        assert "out of range" in outcome.detail


@pytest.mark.parametrize("lie", ["one", "garbage", "every part"])
def test_in_two_of_three_one_liar_stops_no_opening(
    blobs: BlobStore, lie: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One against one on every part that it lies about: what opens to a sum is right (the review's p23)."""
    made = world()
    round_ = Played(made, clients(made), blobs)
    part = made.task.sharing.subshares_of(1)[0]

    def lied(vectors: Vectors) -> None:
        for place in [(1, part)] if lie != "every part" else list(vectors):
            vectors[place] = bytes(len(vectors[place])) if lie == "garbage" else added(made.task, vectors[place])

    opened = round_.open([round_.released(0), round_.released(1, lied), round_.released(2)])
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    assert "suspects=['holder-1']" in capsys.readouterr().out


def test_a_liar_and_a_client_that_seals_different_seeds(blobs: BlobStore, capsys: pytest.CaptureFixture[str]) -> None:
    """3-of-5, in one bucket: holder 0 lies, holder 4 was given other seeds, the other three open it."""
    made = world(5, 3)
    sent = clients(made)
    sent[1] = poisoned(made, "client-1", lambda seeds, holder: [bytes(32)] * len(seeds) if holder == 4 else seeds)
    round_ = Played(made, sent, blobs)
    liar = round_.released(0, one_more(made.task, 1, made.task.sharing.subshares_of(0)[0]))
    opened = round_.open([liar, *(round_.released(holder) for holder in range(1, 5))])
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    assert "suspects=['holder-0', 'holder-4']" in capsys.readouterr().out


def test_nobody_waits_for_a_holder_that_cannot_know_better(blobs: BlobStore) -> None:
    """Three holders of 2-of-3 agree on a sum that is none: its client lied. So the bucket is dropped at once."""
    made = world()
    sent = clients(made)
    sent[1] = poisoned(made, "client-1", lambda seeds, holder: [bytes(32), *seeds[1:]])
    round_ = Played(made, sent, blobs)
    assert isinstance(checked(round_, [round_.released(0), round_.released(1)]), Waiting)
    outcome = checked(round_, [round_.released(holder) for holder in range(3)])
    assert isinstance(outcome, Checked)
    assert [bucket.bucket for bucket in outcome.dropped] == [1]


@pytest.mark.parametrize("off", [False, True])
def test_a_client_beyond_its_range_costs_its_bucket(
    blobs: BlobStore, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing bounds what a client encrypts but the modulus. Off: one of eight moves the mean past value_range."""
    made = world(combination="mean", value_range=1.0)
    honest = clients(made)
    far = int(20 * 8 * SCALE)
    round_ = Played(made, [honest[0], send_kahe(made, "client-1", np.full(D, far)), *honest[2:]], blobs)
    if off:
        monkeypatch.setattr(opening, "check_range", lambda *_: None)
        monkeypatch.setattr("he_server.rules.aggregation.largest_mean", lambda *_: np.inf)
        assert round_.opened_by(0, 1, 2).model["w"].min() > 18
        return
    opened = round_.opened_by(0, 1, 2)
    assert [bucket.bucket for bucket in opened.dropped] == [1]
    assert "out of range" in opened.dropped[0].failure.detail
    assert opened.dropped[0].failure.type == COMBINE_REFUSED.urn
    assert np.abs(opened.total - round_.of(0, 2, 3)).max() < ERROR


@pytest.mark.parametrize("off", [False, True])
def test_a_client_that_takes_the_weight_away(blobs: BlobStore, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighting "examples": a client subtracts the other's weight. What is left is none that two updates can have."""
    one = 1 << 20
    made = world(weighting="examples", weight_cap=10.0, value_range=1.0, scale=float(one))
    honest = np.append(np.full(D, one // 100), one)
    evil = np.append(np.zeros(D, dtype=np.int64), 1000 - one)
    values = [honest, evil, *[honest] * (2 * BUCKETS - 2)]
    round_ = Played(made, [send_kahe(made, f"client-{i}", value) for i, value in enumerate(values)], blobs)
    if off:  # 1000 units of weight: the sum of the honest coordinates by it is 10.5, where the mean is 0.01
        monkeypatch.setattr("he_protocol.aggregation.weighting.Examples.summed", lambda *_: (0.0, np.inf))
    outcome = checked(round_, [round_.released(holder) for holder in range(3)])
    assert isinstance(outcome, Checked)
    assert len(outcome.dropped) == (0 if off else 1)
    if not off:
        assert "summed weight" in outcome.dropped[0].failure.detail
    else:
        assert min(bucket.weight for bucket in outcome.kept) < 0.002


class Lying:
    """A holder's opener that adds one to a coefficient of one part."""

    def __init__(self, opener: Any, task: Task, part: int) -> None:
        self._opener, self._task, self._part = opener, task, part

    def begin(self) -> Any:
        total = self._opener.begin()
        honest = total.release

        def release(manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
            for part, packed in honest(manifest_hash, bucket):
                yield part, added(self._task, packed) if part == self._part else packed

        total.release = release
        return total


async def test_a_lying_holder_behind_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is among the first to answer, by HTTP, with one coefficient off by one. The last holder comes later."""
    await Service.provision(tmp_path, "kahe", "kahe-30", privacy={"unit": "none"}, scale=2.0**22)
    update = {"w": np.full((2, 3), 0.25, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
    async with Service(tmp_path) as service, AsyncExitStack() as stack:
        task = service.task
        holders = [await stack.enter_async_context(service.holder(n)) for n in range(1, HOLDERS + 1)]
        holders[0]._share_makers[task.hash] = Lying(holders[0].share_maker(task), task, task.sharing.subshares_of(0)[0])
        agents = [Agent(holder, task, service.url, poll_seconds=0.02) for holder in holders]
        runs = [asyncio.create_task(agent.run()) for agent in agents[:-1]]
        one, two = [await stack.enter_async_context(service.client(n)) for n in (1, 2)]
        before = await one.pull_model(task)
        sent, _ = await asyncio.gather(*(client.submit(task, update, base_version=0) for client in (one, two)))
        while (await one.round(task, sent.round)).shares < task.config.committee.threshold:
            await asyncio.sleep(0.02)
        runs.append(asyncio.create_task(agents[-1].run()))
        assert await one.wait(task, sent, within=20) == 1
        after = await one.pull_model(task)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
    np.testing.assert_allclose(after.tensors["w"] - before.tensors["w"], 0.25, atol=1e-4)
    np.testing.assert_allclose(after.tensors["b"], 0.0, atol=1e-4)
    if task.config.committee.threshold == HOLDERS - 1:  # the liar was needed at first
        assert "suspects=['holder-1']" in capsys.readouterr().out
