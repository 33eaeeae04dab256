"""Adding updates up while their round is open, and the rest once it is closed."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal, TypeAlias

import structlog

from he_protocol.errors import ProblemError
from he_protocol.problems import DISK_FULL, INTERNAL, WRONG_STATE
from he_protocol.task import Task
from he_server.blobs import keys
from he_server.blobs.vectors import fold_updates
from he_server.jobs.leases import kept
from he_server.jobs.outcomes import fail
from he_server.rules.admission import backlog_limit
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import fold_due
from he_server.services.context import ServerContext
from he_server.services.receive import delete_blobs, keep_or_delete
from he_server.store.folding import Fold

Progress: TypeAlias = Literal["folded", "wait", "done"]

log = structlog.get_logger()


async def fold(server: ServerContext, task: Task, record: RoundRecord, now: float) -> Progress:
    """Fold a batch of updates, if that is due; "done" when all are folded."""
    backlog = await server.store.folding.backlog(record.id, now)
    size = task.section("sum").size
    filled = sum(backlog.waiting.values()) * size / backlog_limit(size, server.settings.ingest_bytes)
    bucket = fold_due(backlog.waiting, record.state, waited=now - backlog.oldest, filled=filled)
    if bucket is None:
        return "wait" if backlog.unfolded else "done"
    seconds = server.settings.lease_seconds
    claimed = await server.store.folding.begin(record.id, bucket, now, seconds)
    if claimed is None:
        return "wait"
    async with kept(server, partial(server.store.folding.renew, claimed)):
        try:
            await fold_in(server, task, claimed)
        except FileNotFoundError as error:
            await cannot_fold(server, task, record, claimed, str(error))
        except ProblemError as refusal:
            if refusal.problem.damage:  # the bytes were checked before they were stored
                await cannot_fold(server, task, record, claimed, refusal.detail)
            elif refusal.problem not in {WRONG_STATE, DISK_FULL}:
                raise
            log.warning("fold put off", task=task.id, round=record.number, problem=refusal.problem.slug)
    return "folded"


async def fold_in(server: ServerContext, task: Task, claimed: Fold) -> None:
    """Bytes first, then the row that counts them, then away with what it replaces."""
    made, start = keys.fresh(), time.monotonic()
    before = keys.accumulator_blob(claimed.blob) if claimed.blob else None
    terms = [(keys.update_blob(claim.blob), claim.position) for claim in claimed.updates]
    after = keys.accumulator_blob(made)
    await server.threads.run(fold_updates, task, server.blobs, before, terms, after)
    async with keep_or_delete(server, after):
        check_kept = partial(server.threads.run, server.blobs.check_kept, [after], WRONG_STATE)
        await server.store.folding.checkpoint(claimed, made, check_kept)
    server.admission.invalidate()
    server.metrics.fold.observe(time.monotonic() - start)
    done = await server.store.folding.folded_blobs(claim.blob for claim in claimed.updates)
    added = [] if await retains(server) else [keys.update_blob(blob) for blob in done]
    await delete_blobs(server, [*added, *([before] if before else [])])


async def retains(server: ServerContext) -> bool:
    """Whether updates stay on the disk after they were added up, so that they can be taken out again."""
    taken = await server.store.status.taken()
    held = sum([count * (await server.tasks.get(task)).section("sum").size for task, count in taken.items()])
    free = (await server.admission.load()).free
    return held <= server.settings.retain_bytes and free >= 2 * server.settings.min_free_bytes


async def cannot_fold(server: ServerContext, task: Task, record: RoundRecord, claimed: Fold, error: str) -> None:
    """An open round goes on until it closes; a closed one fails. Bytes that went with a lost lease are no loss."""
    now, seconds = server.clock(), server.settings.lease_seconds
    if not await server.store.folding.renew(claimed, now, seconds):
        return
    log.error("bytes of updates are gone", task=task.id, round=record.number, error=error)
    if record.state == "closed":
        lease = await server.store.rounds.lease(record, now, seconds)
        if lease is not None:
            await fail(server, task, lease, INTERNAL, "stored bytes of the round are gone", {})
