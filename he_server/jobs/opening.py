"""Opening one round: from the holders' shares to the next model, block by block.

Every bucket's sum is opened twice. The first time only tells which choice of shares opens it, if any; the second time
writes what is published. So nothing is written for a bucket that is dropped, and memory holds one block of each bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from hashlib import sha256

import numpy as np
import structlog

from he_protocol.aggregation.combination import Mean
from he_protocol.documents import DroppedBucket, Failure, RoundMetric
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Manifest, Share
from he_protocol.privacy.quantise import Integers
from he_protocol.privacy.rotation import Rotation
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.scheme import DecryptBlock, blocks
from he_protocol.sharing import Resolution, choices
from he_protocol.task import Task
from he_server.blobs.keys import model_blob, optimiser_blob, sum_blob, total_blob
from he_server.blobs.store import BlobStore, BlobWriter
from he_server.blobs.tensor_file import TensorFile, file_sha256, model_file, optimiser_file, sum_file
from he_server.blobs.vectors import Released, claims_of, read_total, share_readers, sum_layout
from he_server.rules.aggregation import check_range, mean_of, weight_of
from he_server.rules.choosing import Candidate, Settled, Unsettled, settle
from he_server.rules.records import ModelRecord, RoundRecord, ShareRecord
from he_server.services.context import ServerContext

log = structlog.get_logger()

TURNED = 1 << 18
"""Coordinates of a rotated mean that are written at a time."""


@dataclass(frozen=True)
class Opened:
    """A round's stored outcome: the SHA-256 of the new model, of how many updates it is, what is not in it, and what
    clients reported."""

    sha256: str
    updates: int
    dropped: tuple[DroppedBucket, ...]
    metrics: tuple[RoundMetric, ...]


@dataclass(frozen=True)
class Bucket:
    """A bucket that opens: the blob of its sum, what opens it, its updates and their weight."""

    total: str
    decrypt_block: DecryptBlock
    updates: int
    weight: float


@dataclass(frozen=True)
class Checked:
    """The buckets that open, and those that never will."""

    kept: tuple[Bucket, ...]
    dropped: tuple[DroppedBucket, ...]


@dataclass(frozen=True)
class Waiting:
    """Other holders may know better than those that answered. `detail`: what is wrong with these shares."""

    detail: str


def released_shares(task: Task, shares: Sequence[ShareRecord]) -> list[Released]:
    """Stored shares (verified when they came), by the holder's number."""
    numbers = {holder.name: index for index, holder in enumerate(task.config.committee.holders)}
    found = [Released(numbers[s.holder], read_unverified(s.token, Share), s.blob) for s in shares]
    return sorted(found, key=lambda item: item.holder)


async def decrypt_sum(
    server: ServerContext,
    task: Task,
    record: RoundRecord,
    base: ModelRecord,
    released: Sequence[Released],
    *,
    last: bool,
) -> Opened | Waiting | ProblemError:
    """The round's outcome; or why these shares do not open it yet; or the `combine-refused` that ends it.

    Unless these shares are the `last`, a bucket is dropped only where no other holder can know better.
    """
    try:
        manifest = await server.threads.run(read_unverified, record.manifest, Manifest)
        checked = await server.threads.run(check_buckets, task, server.blobs, record.id, manifest, released, last=last)
        if isinstance(checked, Waiting):
            return checked
        version = await server.threads.run(write_version, task, server.blobs, record.id, checked.kept, base)
    except ProblemError as refusal:
        if refusal.problem != COMBINE_REFUSED:
            raise
        return refusal
    updates = sum(bucket.updates for bucket in checked.kept)
    config = task.config
    metrics = task.reports.decode(config.sum_plan, config.encryption.scale, version.report, updates)
    return Opened(version.sha256, updates, checked.dropped, metrics)


def check_buckets(
    task: Task, blobs: BlobStore, round_id: int, manifest: Manifest, released: Sequence[Released], *, last: bool
) -> Checked | Waiting:
    """Open one bucket after the other and keep nothing: those that open, and those that do not.

    Blocks. Raises `combine-refused` when none opens and no other shares will change that.
    """
    members: dict[int, list[str]] = {}
    for entry in manifest.updates:
        members.setdefault(entry.bucket, []).append(entry.update_id.hex())
    kept: list[Bucket] = []
    dropped: list[DroppedBucket] = []
    for bucket, ids in sorted(members.items()):
        sums = Contested(task, blobs, total_blob(round_id, bucket), released, bucket, len(ids), len(manifest.updates))
        outcome = sums.outcome(last=last)
        if isinstance(outcome, Settled):
            candidate = outcome.candidate
            kept.append(Bucket(sums.total, candidate.decrypt_block, len(ids), candidate.weight))
            if suspects := outcome.choice.suspects:  # or a client of this bucket sealed different keys to them
                names = [task.config.committee.holders[i].name for i in sorted(suspects)]
                log.warning(
                    "the opened sum contradicts key holders",
                    task=task.id,
                    round=manifest.round,
                    bucket=bucket,
                    suspects=names,
                )
            continue
        reason = _reason(outcome.refusal, released, bucket)
        if not (last or outcome.final):
            return Waiting(f"bucket {bucket}: {reason}")
        dropped.append(DroppedBucket(bucket, tuple(ids), Failure(COMBINE_REFUSED.urn, reason)))
    if not kept:
        raise ProblemError(COMBINE_REFUSED, f"no bucket opens; bucket {dropped[0].bucket}: {dropped[0].failure.detail}")
    return Checked(tuple(kept), tuple(dropped))


@dataclass(frozen=True)
class Contested:
    """One bucket's sum and the shares that may open it: `count` of the round's `of` updates."""

    task: Task
    blobs: BlobStore
    total: str
    released: Sequence[Released]
    bucket: int
    count: int
    of: int

    def outcome(self, *, last: bool) -> Settled | Unsettled:
        """The one sum that is believed, if there is one."""
        sharing = self.task.sharing
        claims = claims_of(self.released, self.bucket)
        found = choices(sharing, claims)
        attempt = partial(self._attempt, contested=len(found) > 1)
        heard = [holder for holder, subshares in claims.items() if subshares]
        return settle(sharing, found, attempt, heard=heard, binding=self.task.scheme.binding, last=last)

    def _attempt(self, choice: Resolution, *, contested: bool) -> Candidate:
        """Open the whole sum with these shares. Raises `combine-refused` at the first block that cannot be right."""
        task = self.task
        readers = share_readers(task, self.blobs, self.released, self.bucket, choice)
        decrypt_block = task.scheme.decryptor(readers, task.length, self.count, task.epoch_id)
        largest, final, digest = task.config.sum_plan.largest(task.config.encryption.scale, self.count), 0, sha256()
        for _, (opened,) in _opened(task, self.blobs, [(self.total, decrypt_block)]):
            check_range(opened, largest)
            final = int(opened[-1])
            if contested:  # to tell whether two choices open to one sum
                digest.update(np.ascontiguousarray(opened).data)
        return Candidate(decrypt_block, weight_of(task.config, final, self.count, self.of), digest.digest())


@dataclass(frozen=True)
class Version:
    """A stored model's SHA-256, and the opened integers of the metrics."""

    sha256: str
    report: Integers


def write_version(task: Task, blobs: BlobStore, round_id: int, kept: Sequence[Bucket], base: ModelRecord) -> Version:
    """Store the opened sum of these buckets, the model after `base`, and its optimiser's state.

    Blocks. Raises `combine-refused` when the model would leave the range of float32, and `disk-full`.
    """
    models, states, sums = model_file(task), optimiser_file(task), sum_file(task)
    old_model, old_state = model_blob(task.id, base.sha256), optimiser_blob(task.id, base.sha256)
    models.check(blobs, old_model)
    moved = base.sha256 != task.config.model.initial_model.hex()  # whatever its version is: see `RoundStore.recover`
    if moved:
        states.check(blobs, old_state)
    optimiser = task.config.aggregation.optimiser
    report, behind = [np.zeros(0, dtype=np.int64)], task.parameters + task.reports.appended
    with ExitStack() as stack:

        def begin(file: TensorFile) -> BlobWriter:
            writer = stack.enter_context(blobs.writer())
            writer.write(file.header)
            return writer

        new_sum, new_state, new_model = begin(sums), begin(states), begin(models)

        def keep(first: int, whole: Integers) -> None:
            sums.write(new_sum, first, whole)
            reported = whole[max(task.parameters - first, 0) : max(behind - first, 0)]
            report.append(reported.copy())  # a view would keep all of the block

        for first, mean in _turned_back(task.rotation, _means(task, blobs, kept, keep)):
            model = models.read(blobs, old_model, first, len(mean))
            state = optimiser.fresh(len(mean))
            starts = [first + task.parameters * number for number in range(len(state))]
            if moved:
                state = np.stack([states.read(blobs, old_state, start, len(mean)) for start in starts])
            model, state = optimiser.step(model, state, mean, base.version)
            models.write(new_model, first, model)
            for start, values in zip(starts, state, strict=True):
                states.write(new_state, start, values)
        sums.write(new_sum, task.length, np.array([sum(bucket.updates for bucket in kept)]))
        digest = file_sha256(new_model.reread(0))
        new_state.commit(optimiser_blob(task.id, digest))
        new_sum.commit(sum_blob(task.id, round_id))
        new_model.commit(model_blob(task.id, digest))
    return Version(digest, np.concatenate(report))


def _means(
    task: Task, blobs: BlobStore, kept: Sequence[Bucket], keep: Callable[[int, Integers], None]
) -> Iterator[tuple[int, Mean]]:
    """The round's mean, block by block, each with the number of its first coordinate; `keep` gets the whole sum."""
    weights = [bucket.weight for bucket in kept]
    for first, opened in _opened(task, blobs, [(bucket.total, bucket.decrypt_block) for bucket in kept]):
        keep(first, reduce(np.add, opened))
        values = [piece[: max(task.parameters - first, 0)] for piece in opened]  # without what rode along
        if len(values[0]):
            yield first, mean_of(values, weights, task.config)


def _turned_back(rotation: Rotation | None, means: Iterator[tuple[int, Mean]]) -> Iterator[tuple[int, Mean]]:
    """The mean before its rotation. Then a coordinate depends on others far away, and memory holds all of them."""
    if rotation is None:
        yield from means
        return
    whole = np.empty(rotation.length)
    for first, mean in means:
        whole[first : first + len(mean)] = mean
    whole = rotation.inverse(whole)
    for first in range(0, rotation.length, TURNED):
        yield first, whole[first : first + TURNED]


def _opened(
    task: Task, blobs: BlobStore, sums: Sequence[tuple[str, DecryptBlock]]
) -> Iterator[tuple[int, list[Integers]]]:
    """The same block of every sum after the other, each with the number of its first integer."""
    at = 0
    for first, count in blocks(sum_layout(task).shape, len(sums)):
        opened = [decrypt_block(first, read_total(task, blobs, total, first, count)) for total, decrypt_block in sums]
        yield at, opened
        at += len(opened[0])


def _reason(refusal: ProblemError, released: Sequence[Released], bucket: int) -> str:
    """Why a bucket was dropped: what its shares came to, and the updates that holders could not use."""
    named = [
        f"{item.share.holder} cannot use update {failed.update_id.hex()} ({failed.problem})"
        for item in released
        for failed in item.share.failed
        if failed.bucket == bucket
    ]
    return "; ".join([refusal.detail, *named])
