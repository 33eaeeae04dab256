"""Opening one round: from the holders' shares to the next model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from he_protocol.messages import Share
from he_protocol.problems import COMBINE_REFUSED, Refusal
from he_protocol.quantise import Floats, Integers
from he_protocol.signing import read_unverified
from he_protocol.task import Task
from he_server.aggregate import Released, advance, choose, combine, load_vectors
from he_server.blobs import Blobs
from he_server.names import total_blob
from he_server.server import Server
from he_server.store.records import ModelRecord, RoundRecord, ShareRecord

log = structlog.get_logger()


@dataclass(frozen=True)
class Opened:
    """The opened integer sum, and the model and velocity after it."""

    total: Integers
    model: dict[str, Floats]
    velocity: Floats
    suspects: tuple[str, ...]


def released_shares(task: Task, shares: Sequence[ShareRecord]) -> list[Released]:
    """Stored shares (verified when they came), by the holder's number."""
    numbers = {holder.name: index for index, holder in enumerate(task.config.holders)}
    found = [Released(numbers[s.holder], read_unverified(s.token, Share), s.blob) for s in shares]
    return sorted(found, key=lambda item: item.holder)


async def open_sum(
    server: Server, task: Task, record: RoundRecord, base: ModelRecord, released: Sequence[Released]
) -> Opened | Refusal:
    """The round's outcome, or the `combine-refused` that says why these shares do not open it."""
    try:
        opened = await server.thread(_open, task, server.blobs, record, base, released)
    except Refusal as refusal:
        if refusal.problem != COMBINE_REFUSED:
            raise
        return refusal
    if opened.suspects:
        log.warning("a majority contradicts key holders", task=task.id, round=record.number, suspects=opened.suspects)
    return opened


def _open(task: Task, blobs: Blobs, record: RoundRecord, base: ModelRecord, released: Sequence[Released]) -> Opened:
    resolution, sources = choose(task, released)
    vectors = load_vectors(task, blobs, sources)
    total = combine(task, blobs, total_blob(record.id), vectors, record.updates)
    model, velocity = advance(task, blobs, (base.version, base.sha256), total, record.updates)
    suspects = tuple(task.config.holders[i].name for i in sorted(resolution.suspects))
    return Opened(total, model, velocity, suspects)
