"""Opening one round: from the holders' shares to the next model, block by block.

Every bucket's sum is opened twice. The first time only tells whether all of it opens; the second time writes what is
published. So nothing is written for a bucket that is dropped, and memory holds one block of each bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from hashlib import file_digest

import numpy as np
import structlog

from he_protocol.api import DroppedBucket, Failure
from he_protocol.messages import Manifest, Share
from he_protocol.problems import COMBINE_REFUSED, Refusal
from he_protocol.quantise import Integers
from he_protocol.schemes import OpenBlock, blocks
from he_protocol.signing import read_unverified
from he_protocol.task import Task
from he_server.aggregate import Released, choose, read_total, share_reader, sum_layout
from he_server.blobs import Blobs, BlobWriter
from he_server.names import fresh, model_blob, sum_blob, total_blob, velocity_blob
from he_server.optimiser import mean_of, step, weight_of
from he_server.server import Server
from he_server.store.records import ModelRecord, RoundRecord, ShareRecord
from he_server.tensors import TensorFile, model_file, sum_file, velocity_file

log = structlog.get_logger()


@dataclass(frozen=True)
class Opened:
    """A round's stored outcome: the SHA-256 of the new model, of how many updates it is, and what is not in it."""

    sha256: str
    updates: int
    dropped: tuple[DroppedBucket, ...]


@dataclass(frozen=True)
class Bucket:
    """A bucket that opens: the blob of its sum, what opens it, its updates and their weight."""

    total: str
    open_block: OpenBlock
    updates: int
    weight: float


def released_shares(task: Task, shares: Sequence[ShareRecord]) -> list[Released]:
    """Stored shares (verified when they came), by the holder's number."""
    numbers = {holder.name: index for index, holder in enumerate(task.config.holders)}
    found = [Released(numbers[s.holder], read_unverified(s.token, Share), s.blob) for s in shares]
    return sorted(found, key=lambda item: item.holder)


async def open_sum(
    server: Server, task: Task, record: RoundRecord, base: ModelRecord, released: Sequence[Released], *, last: bool
) -> Opened | Refusal:
    """The round's outcome, or the `combine-refused` that says why these shares do not open it.

    Unless these shares are the `last`, every bucket must open: another holder may know better.
    """
    try:
        manifest = await server.thread(read_unverified, record.manifest, Manifest)
        kept, dropped = await server.thread(check_buckets, task, server.blobs, record.id, manifest, released)
        if dropped and not last:
            return Refusal(COMBINE_REFUSED, f"bucket {dropped[0].bucket}: {dropped[0].failure.detail}")
        sha256 = await server.thread(write_version, task, server.blobs, record.id, kept, base)
    except Refusal as refusal:
        if refusal.problem != COMBINE_REFUSED:
            raise
        return refusal
    return Opened(sha256, sum(bucket.updates for bucket in kept), tuple(dropped))


def check_buckets(
    task: Task, blobs: Blobs, round_id: int, manifest: Manifest, released: Sequence[Released]
) -> tuple[list[Bucket], list[DroppedBucket]]:
    """Open one bucket after the other and keep nothing: those that open, and those that do not.

    Blocks. Raises `combine-refused` when none opens.
    """
    members: dict[int, list[str]] = {}
    for entry in manifest.updates:
        members.setdefault(entry.bucket, []).append(entry.update_id.hex())
    kept, dropped = [], []
    for bucket, ids in sorted(members.items()):
        try:
            resolution, sources = choose(task, released, bucket)
            readers = [share_reader(task, blobs, *source) for source in sources]
            open_block = task.scheme.opener(readers, task.length, len(ids), task.epoch_id)
            total = total_blob(round_id, bucket)
            final = 0
            for _, (opened,) in _opened(task, blobs, [(total, open_block)]):
                final = int(opened[-1])
            weight = weight_of(task.config, final, len(ids), len(manifest.updates))
        except Refusal as refusal:
            if refusal.problem != COMBINE_REFUSED:
                raise
            failure = Failure(refusal.problem.urn, _reason(refusal, released, bucket))
            dropped.append(DroppedBucket(bucket, tuple(ids), failure))
            continue
        kept.append(Bucket(total, open_block, len(ids), weight))
        if resolution.suspects:  # or a client of this bucket sealed different keys to different holders
            names = [task.config.holders[i].name for i in sorted(resolution.suspects)]
            log.warning(
                "a majority contradicts key holders", task=task.id, round=manifest.round, bucket=bucket, suspects=names
            )
    if not kept:
        raise Refusal(COMBINE_REFUSED, f"no bucket opens; bucket 0: {dropped[0].failure.detail}")
    return kept, dropped


def write_version(task: Task, blobs: Blobs, round_id: int, kept: Sequence[Bucket], base: ModelRecord) -> str:
    """Store the opened sum of these buckets, the model after `base`, and its velocity; the model's SHA-256.

    Blocks. Raises `combine-refused` when the model would leave the range of float32, and `disk-full`.
    """
    models, velocities, sums = model_file(task), velocity_file(task), sum_file(task)
    old_model, old_velocity = model_blob(task.id, base.sha256), velocity_blob(task.id, base.sha256)
    models.check(blobs, old_model)
    if base.round_id is not None:
        velocities.check(blobs, old_velocity)
    weights = [bucket.weight for bucket in kept]
    with ExitStack() as stack:

        def begin(name: str, file: TensorFile) -> BlobWriter:
            writer = stack.enter_context(blobs.writer(name))
            writer.write(file.header)
            return writer

        new_sum = begin(sum_blob(task.id, round_id), sums)
        new_velocity = begin(velocity_blob(task.id, fresh()), velocities)  # until the model's hash is known
        new_model = begin(model_blob(task.id, fresh()), models)
        for first, opened in _opened(task, blobs, [(bucket.total, bucket.open_block) for bucket in kept]):
            sums.write(new_sum, first, reduce(np.add, opened))
            values = [piece[: task.parameters - first] for piece in opened]  # without the weight that rode along
            if not (count := len(values[0])):
                continue
            model = models.read(blobs, old_model, first, count)
            velocity = np.zeros(count, dtype=np.float32)
            if base.round_id is not None:
                velocity = velocities.read(blobs, old_velocity, first, count)
            model, velocity = step(model, velocity, mean_of(values, weights, task.config), task.config.optimiser)
            models.write(new_model, first, model)
            velocities.write(new_velocity, first, velocity)
        sums.write(new_sum, task.length, np.array([sum(bucket.updates for bucket in kept)]))
        sha256 = file_digest(new_model.reread(0), "sha256").hexdigest()
        new_velocity.rename(blobs.path(velocity_blob(task.id, sha256)))
        new_model.rename(blobs.path(model_blob(task.id, sha256)))
        for writer in (new_velocity, new_sum, new_model):
            writer.commit()
    return sha256


def _opened(task: Task, blobs: Blobs, sums: Sequence[tuple[str, OpenBlock]]) -> Iterator[tuple[int, list[Integers]]]:
    """The same block of every sum after the other, each with the number of its first integer."""
    at = 0
    for first, count in blocks(sum_layout(task).shape, len(sums)):
        opened = [open_block(first, read_total(task, blobs, total, first, count)) for total, open_block in sums]
        yield at, opened
        at += len(opened[0])


def _reason(refusal: Refusal, released: Sequence[Released], bucket: int) -> str:
    """Why a bucket was dropped: what its shares came to, and the updates that holders could not use."""
    named = [
        f"{item.share.holder} cannot use update {failed.update_id.hex()} ({failed.problem})"
        for item in released
        for failed in item.share.failed
        if failed.bucket == bucket
    ]
    return "; ".join([refusal.detail, *named])
