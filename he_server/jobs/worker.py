"""What happens to rounds by themselves: folding, closing, merging, opening. One small step at a time.

Everything may be done again after a crash at any point: blobs are written before the one
transaction that refers to them, and a transaction checks the lease under which it was prepared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeAlias

import structlog

from he_protocol.problems import (
    BUDGET_EXHAUSTED,
    DISK_FULL,
    INTERNAL,
    RESIDUE_RANGE,
    TOO_FEW_CLIENTS,
    WRONG_SIZE,
    WRONG_STATE,
    ProblemType,
    Refusal,
)
from he_protocol.task import Task
from he_server.blobs import keys
from he_server.blobs.vectors import fold_updates
from he_server.jobs.forming import begin_opening, begin_screening, screened, too_old
from he_server.jobs.garbage import drop_round, sweep
from he_server.jobs.opening import Opened, Waiting, open_sum, released_shares
from he_server.rules.admission import room
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import at_deadline, combining_due, enough_shares, fold_due
from he_server.services.context import Server
from he_server.services.receive import discard, recording
from he_server.store.folding import Fold
from he_server.store.rounds import Lease

SWEEP_SECONDS = 3600.0
ERROR_PAUSE_SECONDS = 1.0
DAMAGED = frozenset({WRONG_SIZE, RESIDUE_RANGE})
"""What stored bytes are refused for that were checked before they were stored."""

Progress: TypeAlias = Literal["folded", "wait", "done"]

log = structlog.get_logger()


class Worker:
    """Advances every round of every task; several workers may share a database."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store = server.store

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; it is looked at between steps."""
        swept = float("-inf")
        while not stop.is_set():
            self._server.due.clear()
            try:
                if time.monotonic() - swept > SWEEP_SECONDS:
                    await sweep(self._server, SWEEP_SECONDS)
                    swept = time.monotonic()
                if not await self.step():
                    await _sleep(self._server.settings.poll_seconds, stop, self._server.due)
            except Refusal as refusal:
                log.warning("worker refused", problem=refusal.problem.slug, detail=refusal.detail)
                await _sleep(ERROR_PAUSE_SECONDS, stop)
            except Exception:
                log.exception("worker failed")
                await _sleep(ERROR_PAUSE_SECONDS, stop)

    async def step(self) -> bool:
        """Do one unit of work that is due; False when there was none."""
        for record in await self._store.live_rounds():
            task = await self._server.task(record.task)
            if await self._advance(task, record):
                self._server.notifier.notify(task.id)
                return True
        return False

    async def _advance(self, task: Task, record: RoundRecord) -> bool:
        now = self._server.clock()
        if record.state == "open":
            return await self._close(task, record, now) or await self._fold(task, record, now) == "folded"
        if record.lease_until > now:
            return False
        if record.state == "closed" and (progress := await self._fold(task, record, now)) != "done":
            return progress == "folded"
        if not await self._due(task, record, now):
            return False
        lease = await self._store.lease(record, now, self._server.settings.lease_seconds)
        if lease is None:
            return False
        async with self._kept(partial(self._store.renew, lease)):
            await self._work(task, lease)
        return True

    async def _due(self, task: Task, record: RoundRecord, now: float) -> bool:
        """Whether a round whose updates are added up can be shown to key holders, be put to the vote, or be opened."""
        if record.state == "opening":
            late = now >= record.opening_deadline
            return combining_due(task.committee, record.shares, record.tried, late=late)
        if record.manifest and not too_old(task, record, now):
            return screened(task, record, await self._store.answers_of(record.id))
        return await self._store.next_opening(record) is not None

    async def _work(self, task: Task, lease: Lease) -> None:
        try:
            if lease.round.state == "closed":
                await self._form(task, lease)
            else:
                await self._open(task, lease)
        except FileNotFoundError as error:
            await self._lost(task, lease, str(error))
        except Refusal as refusal:
            if refusal.problem in DAMAGED:
                await self._lost(task, lease, refusal.detail)
                return
            if refusal.problem == WRONG_STATE:  # somebody else moved it, or published first
                await self._store.release(lease, lease.round.tried)
            elif refusal.problem != DISK_FULL:
                raise
            log.warning("round put off", task=task.id, round=lease.round.number, problem=refusal.problem.slug)

    async def _lost(self, task: Task, lease: Lease, error: str) -> None:
        """Fail a round whose stored bytes are gone or damaged; not if the lease is lost, and the bytes with it."""
        if await self._store.renew(lease, self._server.clock(), self._server.settings.lease_seconds):
            log.error("bytes of a round are gone", task=task.id, round=lease.round.number, error=error)
            await self._fail(task, lease, INTERNAL, "stored bytes of the round are gone", {})

    async def _fold(self, task: Task, record: RoundRecord, now: float) -> Progress:
        """Fold a batch of updates, if that is due; "done" when all are folded."""
        backlog = await self._store.backlog(record.id, now)
        size = task.part("sum").size
        filled = sum(backlog.waiting.values()) * size / room(size, self._server.settings.ingest_bytes)
        bucket = fold_due(backlog.waiting, record.state, waited=now - backlog.oldest, filled=filled)
        if bucket is None:
            return "wait" if backlog.unfolded else "done"
        seconds = self._server.settings.lease_seconds
        fold = await self._store.begin_fold(record.id, bucket, now, seconds)
        if fold is None:
            return "wait"
        async with self._kept(partial(self._store.renew_fold, fold)):
            try:
                await self._fold_in(task, fold)
            except FileNotFoundError as error:
                await self._cannot_fold(task, record, fold, str(error))
            except Refusal as refusal:
                if refusal.problem in DAMAGED:
                    await self._cannot_fold(task, record, fold, refusal.detail)
                elif refusal.problem not in {WRONG_STATE, DISK_FULL}:
                    raise
                log.warning("fold put off", task=task.id, round=record.number, problem=refusal.problem.slug)
        return "folded"

    async def _fold_in(self, task: Task, fold: Fold) -> None:
        """Bytes first, then the row that counts them, then away with what it replaces."""
        server, made, start = self._server, keys.fresh(), time.monotonic()
        before = keys.accumulator_blob(fold.blob) if fold.blob else None
        terms = [(keys.update_blob(claim.blob), claim.position) for claim in fold.updates]
        after = keys.accumulator_blob(made)
        await server.thread(fold_updates, task, server.blobs, before, terms, after)
        async with recording(server, after):
            await self._store.checkpoint(fold, made, partial(server.check_kept, after, WRONG_STATE))
        server.pressure.relieved()
        server.metrics.fold.observe(time.monotonic() - start)
        done = await self._store.folded_blobs(claim.blob for claim in fold.updates)
        added = [] if await server.retains() else [keys.update_blob(blob) for blob in done]
        await discard(server, [*added, *([before] if before else [])])

    async def _cannot_fold(self, task: Task, record: RoundRecord, fold: Fold, error: str) -> None:
        """An open round goes on until it closes; a closed one fails. Bytes that went with a lost lease are no loss."""
        now, seconds = self._server.clock(), self._server.settings.lease_seconds
        if not await self._store.renew_fold(fold, now, seconds):
            return
        log.error("bytes of updates are gone", task=task.id, round=record.number, error=error)
        if record.state == "closed":
            lease = await self._store.lease(record, now, seconds)
            if lease is not None:
                await self._fail(task, lease, INTERNAL, "stored bytes of the round are gone", {})

    async def _close(self, task: Task, record: RoundRecord, now: float) -> bool:
        if at_deadline(record.updates, task.config.min_clients, record.deadline, now) == "wait":
            return False
        moved = await self._store.close_due_round(task, record, now)
        if moved is None:
            return False
        self._server.metrics.observe_stages({"collect": moved.seconds["collect"]})
        if moved.state == "failed":
            await self._ended(task, moved, "failed", moved.failure_type)
        return True

    async def _form(self, task: Task, lease: Lease) -> None:
        """A closed round's next manifest: the one to be screened, or the final one."""
        record = lease.round
        try:
            if not record.manifest or too_old(task, record, self._server.clock()):
                await begin_screening(self._server, task, lease)
            else:
                self._server.metrics.observe_stages(await begin_opening(self._server, task, lease))
        except Refusal as refusal:
            if refusal.problem not in {TOO_FEW_CLIENTS, BUDGET_EXHAUSTED}:
                raise
            await self._fail(task, lease, refusal.problem, refusal.detail, {})

    async def _open(self, task: Task, lease: Lease) -> None:
        server, current = self._server, lease.round
        start = time.monotonic()
        now = server.clock()
        waited = now - (current.opening_deadline - task.config.opening_seconds)
        released = released_shares(task, await self._store.shares_of(current.id))
        base = await self._store.model(task.id)
        whole, late = sum(not item.share.failed for item in released), now >= current.opening_deadline
        last = enough_shares(task.committee, len(released), whole, binding=task.scheme.binding, late=late)
        outcome = await open_sum(server, task, current, base, released, last=last)
        wrong = [bucket.failure for bucket in outcome.dropped] if isinstance(outcome, Opened) else [outcome]
        for failure in wrong:
            log.warning("shares do not open a sum", task=task.id, round=current.number, detail=failure.detail)
        if isinstance(outcome, Waiting):
            await self._store.release(lease, len(released))
            return
        if isinstance(outcome, Refusal):
            await self._fail(task, lease, outcome.problem, outcome.detail, {"wait_shares": waited})
            return
        seconds = {"wait_shares": waited, "open": time.monotonic() - start}
        await self._store.publish_round(
            lease, base.version + 1, outcome.sha256, server.clock(), seconds, outcome.dropped
        )
        server.metrics.observe_stages(seconds)
        await self._ended(task, current, "published", "")

    async def _fail(
        self, task: Task, lease: Lease, problem: ProblemType, detail: str, seconds: dict[str, float]
    ) -> None:
        await self._store.fail_round(lease, problem, detail, self._server.clock(), seconds)
        self._server.metrics.observe_stages(seconds)
        await self._ended(task, lease.round, "failed", problem.urn)

    async def _ended(self, task: Task, record: RoundRecord, state: str, problem: str) -> None:
        self._server.heard(task.id)
        self._server.metrics.rounds.labels(state, problem).inc()
        log.info("round ended", task=task.id, round=record.number, state=state, problem=problem)
        await drop_round(self._server, record.id)

    @asynccontextmanager
    async def _kept(self, renew: Callable[[float, float], Awaitable[bool]]) -> AsyncIterator[None]:
        """Renew a lease (at a time, for so many seconds) while something long runs under it."""
        renewing = asyncio.create_task(self._renew(renew))
        try:
            yield
        except asyncio.CancelledError:  # the process stops: let it run out now, so that another goes on at once
            renewing.cancel()
            await renew(self._server.clock(), 0.0)
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, renew: Callable[[float, float], Awaitable[bool]]) -> None:
        seconds = self._server.settings.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            if not await renew(self._server.clock(), seconds):
                self._server.metrics.leases_lost.inc()
                return


async def _sleep(seconds: float, *events: asyncio.Event) -> None:
    """Until one of the events is set, at most so many seconds."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
