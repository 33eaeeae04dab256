"""What happens to rounds by themselves: closing, summing, opening. One small step at a time.

Everything may be done again after a crash at any point: blobs are written before the one
transaction that refers to them, and a transaction checks the lease under which it was prepared.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from he_protocol.messages import Manifest, ManifestEntry
from he_protocol.problems import DISK_FULL, INTERNAL, NO_QUORUM, WRONG_STATE, ProblemType, Refusal
from he_protocol.task import Task
from he_server import names
from he_server.aggregate import fold_updates
from he_server.opening import Opened, open_sum, released_shares
from he_server.rounds import at_deadline, opening_due
from he_server.server import Server
from he_server.store.records import RoundRecord
from he_server.store.rounds import Lease
from he_server.sweep import drop_round, sweep
from he_server.tensors import write_sum, write_tensors, write_velocity

SWEEP_SECONDS = 3600.0
ERROR_PAUSE_SECONDS = 1.0

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
            pause = self._server.settings.poll_seconds
            try:
                if time.monotonic() - swept > SWEEP_SECONDS:
                    await sweep(self._server, SWEEP_SECONDS)
                    swept = time.monotonic()
                if await self.step():
                    continue
            except Refusal as refusal:
                log.warning("worker refused", problem=refusal.problem.slug, detail=refusal.detail)
                pause = ERROR_PAUSE_SECONDS
            except Exception:
                log.exception("worker failed")
                pause = ERROR_PAUSE_SECONDS
            await _sleep(stop, pause)

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
            return await self._close(task, record, now)
        if record.lease_until > now:
            return False
        if record.state == "opening":
            due = opening_due(record.shares, record.tried, task.config.threshold, record.opening_deadline, now)
            if due == "wait":
                return False
        lease = await self._store.lease(record, now, self._server.settings.lease_seconds)
        if lease is None:
            return False
        async with self._kept(lease):
            await self._work(task, lease)
        return True

    async def _work(self, task: Task, lease: Lease) -> None:
        try:
            if lease.round.state == "closed":
                await self._sum(task, lease)
            else:
                await self._open(task, lease)
        except FileNotFoundError as error:
            log.error("bytes of a round are gone", task=task.id, round=lease.round.number, error=str(error))
            await self._fail(task, lease, INTERNAL, "stored bytes of the round are gone", {})
        except Refusal as refusal:
            if refusal.problem == WRONG_STATE:  # somebody else moved it, or published first
                await self._store.release(lease, lease.round.tried)
            elif refusal.problem != DISK_FULL:
                raise
            log.warning("round put off", task=task.id, round=lease.round.number, problem=refusal.problem.slug)

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

    async def _sum(self, task: Task, lease: Lease) -> None:
        server = self._server
        start = time.monotonic()
        updates = await self._store.updates_of(lease.round.id)
        blobs = [names.update_blob(update.blob) for update in updates]
        await server.thread(fold_updates, task, server.blobs, blobs, names.total_blob(lease.round.id))
        manifest = Manifest(
            task_hash=task.hash,
            epoch=task.config.epoch,
            round=lease.round.number,
            model_version=(await self._store.model(task.id)).version,
            updates=tuple(
                ManifestEntry(bytes.fromhex(u.update_id), u.client, bytes.fromhex(u.header_hash)) for u in updates
            ),
        )
        token = await server.thread(server.key.signing.sign, manifest)
        seconds = {"sum": time.monotonic() - start}
        await self._store.begin_opening(lease, token, server.clock() + task.config.opening_seconds, seconds)
        server.metrics.observe_stages(seconds)

    async def _open(self, task: Task, lease: Lease) -> None:
        server, current = self._server, lease.round
        start = time.monotonic()
        now = server.clock()
        waited = now - (current.opening_deadline - task.config.opening_seconds)
        released = released_shares(task, await self._store.shares_of(current.id))
        answered = {item.holder for item in released}
        late = now >= current.opening_deadline
        if len(released) < task.config.threshold:
            holders = task.config.holders
            came = [holder.name for i, holder in enumerate(holders) if i in answered]
            absent = [holder.name for i, holder in enumerate(holders) if i not in answered]
            detail = f"{len(came)} of the needed {task.config.threshold} key holders answered"
            detail += f" ({', '.join(came) or 'none'}); missing: {', '.join(absent)}"
            await self._fail(task, lease, NO_QUORUM, detail, {"wait_shares": waited})
            return
        base = await self._store.model(task.id)
        outcome = await open_sum(server, task, current, base, released)
        if isinstance(outcome, Refusal):
            log.warning("shares do not open the sum", task=task.id, round=current.number, detail=outcome.detail)
            if late or len(released) == len(task.config.holders):
                await self._fail(task, lease, outcome.problem, outcome.detail, {"wait_shares": waited})
            else:
                await self._store.release(lease, len(released))
            return
        sha256 = await self._keep(task, current, outcome)
        seconds = {"wait_shares": waited, "open": time.monotonic() - start}
        await self._store.publish_round(lease, base.version + 1, sha256, server.clock(), seconds)
        server.metrics.observe_stages(seconds)
        await self._ended(task, current, "published", "")

    async def _keep(self, task: Task, current: RoundRecord, opened: Opened) -> str:
        """Write the new model and what belongs to it; the SHA-256 of the model's bytes."""
        model = write_tensors(opened.model)
        sha256 = hashlib.sha256(model).hexdigest()
        put = self._server.blobs.put
        for name, data in (
            (names.velocity_blob(task.id, sha256), write_velocity(opened.velocity)),
            (names.sum_blob(task.id, current.id), write_sum(opened.total)),
            (names.model_blob(task.id, sha256), model),
        ):
            await self._server.thread(put, name, data)
        return sha256

    async def _fail(
        self, task: Task, lease: Lease, problem: ProblemType, detail: str, seconds: dict[str, float]
    ) -> None:
        await self._store.fail_round(lease, problem, detail, seconds)
        self._server.metrics.observe_stages(seconds)
        await self._ended(task, lease.round, "failed", problem.urn)

    async def _ended(self, task: Task, record: RoundRecord, state: str, problem: str) -> None:
        self._server.metrics.rounds.labels(state, problem).inc()
        log.info("round ended", task=task.id, round=record.number, state=state, problem=problem)
        await drop_round(self._server, record.id)

    @asynccontextmanager
    async def _kept(self, lease: Lease) -> AsyncIterator[None]:
        """Renew a lease while something long runs under it."""
        renewing = asyncio.create_task(self._renew(lease))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, lease: Lease) -> None:
        seconds = self._server.settings.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            await self._store.renew(lease, self._server.clock(), seconds)


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
