"""A round with hostile clients, from encrypted updates to the next model: what it costs, and whom it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load, save

from he_holder.request import OpeningRequest
from he_holder.rules import check_all
from he_protocol.config import TensorSpec
from he_protocol.documents import DroppedBucket
from he_protocol.messages import FailedBucket, Share
from he_protocol.problems import COMBINE_REFUSED
from he_server.blobs.keys import model_blob, share_blob, sum_blob, total_blob, update_blob
from he_server.blobs.local import LocalBlobs
from he_server.blobs.store import BlobStore
from he_server.blobs.tensor_file import keep_model
from he_server.blobs.vectors import Released, fold_updates
from he_server.jobs.opening import Checked, check_buckets, write_version
from he_server.rules.records import ModelRecord
from he_testing.problems import expect_problem
from tests.support.openings import Sent, answer, ask, key_sections, send_kahe
from tests.support.parties import World, random_integers
from tests.support.poison import poisoned, unopenable

D, SCALE, BUCKETS, EACH = 40, 1024.0, 4, 2
ERROR = 8 * 6.4 * np.sqrt(BUCKETS * EACH)


def world(holders: int = 3, threshold: int = 2, **plan: Any) -> World:
    shape = {"scheme": "kahe", "profile": "kahe-30", "threshold": threshold, "scale": SCALE}
    sizes = {"min_clients": EACH, "max_clients": BUCKETS * EACH, "buckets": BUCKETS}
    return World(holders, shape | sizes | plan, (TensorSpec("w", (D,)),))


def clients(made: World, count: int = BUCKETS * EACH) -> list[Sent]:
    return [send_kahe(made, f"client-{i}", random_integers(D, i, 1000)) for i in range(count)]


@dataclass
class Opened:
    """What the server publishes of a round: the opened sum of so many updates, the model, and what is not in it."""

    total: np.ndarray
    updates: int
    model: dict[str, np.ndarray]
    dropped: list[DroppedBucket]


@dataclass
class Played:
    """A closed round of `sent`, client i in bucket i % BUCKETS, as the server has it on disk."""

    made: World
    sent: Sequence[Sent]
    blobs: BlobStore

    def __post_init__(self) -> None:
        task = self.made.task
        places = {one.header.client: i % BUCKETS for i, one in enumerate(self.sent)}
        self.request: OpeningRequest = ask(self.made, [one.update for one in self.sent], buckets=places)
        check_all(self.request)
        for bucket in range(BUCKETS):
            names = []
            for one in self.sent[bucket::BUCKETS]:
                names.append(update_blob(one.header.update_id.hex()))
                self.blobs.put(names[-1], one.body[task.section("sum").name])
            fold_updates(task, self.blobs, None, [(name, 0) for name in names], total_blob(1, bucket))
        self.base = ModelRecord(0, None, keep_model(self.blobs, task, save({"w": np.zeros(D, dtype=np.float32)})))

    def released(
        self, holder: int, lie: Callable[[dict[tuple[int, int], bytes]], None] = lambda vectors: None
    ) -> Released:
        """One holder's share as the server stores it; `lie` may change its vectors."""
        share, vectors = answer(self.made, holder, self.request, key_sections(self.made, self.sent))
        lie(vectors)
        blob = f"holder-{holder}"
        self.blobs.put(share_blob(blob), b"".join(vectors.values()))
        return Released(holder, relabelled(share, vectors), blob)

    def open(self, released: Sequence[Released]) -> Opened:
        task = self.made.task
        checked = check_buckets(task, self.blobs, 1, self.request.manifest, released, last=True)
        assert isinstance(checked, Checked)
        sha256 = write_version(task, self.blobs, 1, checked.kept, self.base).sha256
        opened = load(self.blobs.read(sum_blob(task.id, 1)))
        model = load(self.blobs.read(model_blob(task.id, sha256)))
        return Opened(opened["sum"], int(opened["updates"][0]), model, list(checked.dropped))

    def opened_by(self, *holders: int) -> Opened:
        return self.open([self.released(holder) for holder in holders])

    def of(self, *buckets: int) -> np.ndarray:
        """The integers that the clients of these buckets meant, summed."""
        return np.sum([one.integers for bucket in buckets for one in self.sent[bucket::BUCKETS]], axis=0)


def relabelled(share: Share, vectors: Mapping[tuple[int, int], bytes]) -> Share:
    """The share with the digests of these vectors."""
    entries = (replace(e, sha256=sha256(vectors[e.bucket, e.subshare]).digest()) for e in share.vectors)
    return replace(share, vectors=tuple(entries))


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def bucket_of(opened: Opened) -> DroppedBucket:
    (dropped,) = opened.dropped
    return dropped


def test_without_an_attack_every_bucket_is_in_the_sum(blobs: BlobStore) -> None:
    made = world()
    round_ = Played(made, clients(made), blobs)
    opened = round_.opened_by(0, 2)
    assert (opened.updates, opened.dropped) == (8, [])
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    np.testing.assert_allclose(opened.model["w"], opened.total / SCALE / 8, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_wrong_key_shares_cost_their_bucket_and_the_others_publish(blobs: BlobStore, place: int) -> None:
    """Seeds that do not add up to the client's key: every holder agrees on them, only the range check can tell."""
    made = world()
    sent = clients(made)
    sent[place] = poisoned(made, f"client-{place}", lambda seeds, holder: [bytes(32), *seeds[1:]])
    round_ = Played(made, sent, blobs)
    opened = round_.opened_by(0, 1)
    rest = [bucket for bucket in range(BUCKETS) if bucket != place]
    assert bucket_of(opened).bucket == place
    assert bucket_of(opened).failure.type == COMBINE_REFUSED.urn
    assert "out of range" in bucket_of(opened).failure.detail
    assert set(bucket_of(opened).updates) == {one.header.update_id.hex() for one in sent[place::BUCKETS]}
    assert opened.updates == 6
    assert np.abs(opened.total - round_.of(*rest)).max() < ERROR
    np.testing.assert_allclose(opened.model["w"], opened.total / SCALE / 6, rtol=1e-6)


def test_in_one_bucket_wrong_key_shares_cost_the_round(blobs: BlobStore) -> None:
    """The defence off: the same poisoned update where the task has no buckets."""
    made = world(buckets=1, min_clients=8)
    sent = clients(made)
    sent[2] = poisoned(made, "client-2", lambda seeds, holder: [bytes(32), *seeds[1:]])
    request = ask(made, [one.update for one in sent])
    names = [update_blob(str(i)) for i in range(len(sent))]
    for name, one in zip(names, sent, strict=True):
        blobs.put(name, one.body["b"])
    fold_updates(made.task, blobs, None, [(name, 0) for name in names], total_blob(1, 0))
    released = []
    for holder in (0, 1):
        share, vectors = answer(made, holder, request, key_sections(made, sent))
        blobs.put(share_blob(str(holder)), b"".join(vectors.values()))
        released.append(Released(holder, share, str(holder)))
    with expect_problem(COMBINE_REFUSED, "no bucket opens; bucket 0"):
        check_buckets(made.task, blobs, 1, request.manifest, released, last=True)


def test_an_envelope_that_nobody_can_open_costs_its_bucket(blobs: BlobStore) -> None:
    made = world()
    sent = clients(made)
    sent[1] = unopenable(made, sent[1], 0, 1, 2)
    round_ = Played(made, sent, blobs)
    shares = [round_.released(holder) for holder in range(3)]
    update = sent[1].header.update_id
    for one in shares:
        assert one.share.failed == (FailedBucket(1, update, "digest-mismatch"),)
        assert {entry.bucket for entry in one.share.vectors} == {0, 2, 3}
    opened = round_.open(shares)
    assert bucket_of(opened).bucket == 1
    assert f"holder-2 cannot use update {update.hex()} (digest-mismatch)" in bucket_of(opened).failure.detail
    assert np.abs(opened.total - round_.of(0, 2, 3)).max() < ERROR


def test_an_envelope_that_one_holder_cannot_open_costs_nothing(blobs: BlobStore) -> None:
    """The other two are a quorum for the bucket: only until they have both answered is it missing."""
    made = world()
    sent = clients(made)
    sent[1] = unopenable(made, sent[1], 0)
    round_ = Played(made, sent, blobs)
    shares = [round_.released(holder) for holder in range(3)]
    assert [bool(one.share.failed) for one in shares] == [True, False, False]
    assert bucket_of(round_.open(shares[:2])).bucket == 1
    opened = round_.open(shares)
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR


def test_a_holder_says_the_same_twice(blobs: BlobStore) -> None:
    made = world()
    sent = clients(made)
    sent[3] = unopenable(made, sent[3], 0)
    round_ = Played(made, sent, blobs)
    bodies = key_sections(made, sent)
    assert answer(made, 0, round_.request, bodies) == answer(made, 0, round_.request, bodies)


def test_two_bad_updates_of_a_bucket_are_one_failure_of_it(blobs: BlobStore) -> None:
    """The first in the manifest's order is named: a share's head stays as small as it has buckets."""
    made = world()
    sent = clients(made)
    sent[1], sent[5] = unopenable(made, sent[1], 0), unopenable(made, sent[5], 0)
    share = Played(made, sent, blobs).released(0).share
    first = min(sent[1].header.update_id, sent[5].header.update_id)
    assert share.failed == (FailedBucket(1, first, "digest-mismatch"),)


def test_different_seeds_for_different_holders_frame_nobody_in_other_buckets(
    blobs: BlobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """2-of-3: each part is known to two, who contradict each other in one bucket. What opens to a sum is right."""
    made = world()
    sent = clients(made)
    # Part 0 is known to holders 1 and 2, and is a seed, not the explicit part.
    sent[1] = poisoned(made, "client-1", lambda seeds, holder: [bytes(32), *seeds[1:]] if holder == 2 else seeds)
    round_ = Played(made, sent, blobs)
    opened = round_.opened_by(0, 1, 2)
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    told = capsys.readouterr().out
    assert told.count("holder-2") == 1  # an honest one: the bucket is named with it
    assert "bucket=1" in told


def test_a_lying_holder_is_overruled_in_its_bucket_and_believed_in_the_others(
    blobs: BlobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """3-of-5: three know each part. Holder 4's lie about bucket 1 leaves its other buckets as they are."""
    made = world(5, 3)
    round_ = Played(made, clients(made), blobs)

    def lie(vectors: dict[tuple[int, int], bytes]) -> None:
        part = made.task.sharing.subshares_of(4)[0]
        vectors[1, part] = bytes(len(vectors[1, part]))

    opened = round_.open([*(round_.released(holder) for holder in range(4)), round_.released(4, lie)])
    assert opened.dropped == []
    assert np.abs(opened.total - round_.of(0, 1, 2, 3)).max() < ERROR
    told = capsys.readouterr().out
    assert told.count("holder-4") == 1
    assert "bucket=1" in told


def test_a_lie_that_nobody_contradicts_costs_its_bucket(blobs: BlobStore) -> None:
    """2-of-3: of the two that answer, only holder 2 knows this part."""
    made = world()
    round_ = Played(made, clients(made), blobs)

    def lie(vectors: dict[tuple[int, int], bytes]) -> None:
        (part,) = set(made.task.sharing.subshares_of(2)) - set(made.task.sharing.subshares_of(0))
        vectors[1, part] = bytes(len(vectors[1, part]))

    opened = round_.open([round_.released(0), round_.released(2, lie)])
    assert bucket_of(opened).bucket == 1
    assert "out of range" in bucket_of(opened).failure.detail
    assert np.abs(opened.total - round_.of(0, 2, 3)).max() < ERROR


@pytest.mark.parametrize("combination", ["mean", "median", "trimmed-mean"])
def test_a_huge_update_in_range_moves_the_mean_and_not_the_median(tmp_path: Path, combination: str) -> None:
    """Nobody can see one client's values: what it can do to the model is bounded by the combination."""
    made = world(combination=combination, value_range=4.0)
    honest = clients(made)
    harmless = Played(made, honest, LocalBlobs(tmp_path / "harmless")).opened_by(0, 1).model["w"]
    largest = np.full(D, int(4.0 * SCALE))
    sent = [send_kahe(made, "client-0", largest), *honest[1:]]
    opened = Played(made, sent, LocalBlobs(tmp_path / "attacked")).opened_by(0, 1)
    assert opened.dropped == []
    moved = np.abs(opened.model["w"] - harmless)
    means = np.stack([np.mean([one.integers for one in honest[b::BUCKETS]], axis=0) for b in range(1, BUCKETS)]) / SCALE
    if combination == "mean":
        assert moved.min() > 0.35  # (4 - 1) / 8 at least
    else:
        assert (opened.model["w"] <= means.max(axis=0) + 0.1).all()  # never beyond what honest buckets say
        assert (opened.model["w"] >= means.min(axis=0) - 0.1).all()
