"""What happens to rounds by themselves: folding, closing, merging, opening. One small step at a time.

Everything may be done again after a crash at any point: blobs are written before the one
transaction that refers to them, and a transaction checks the lease under which it was prepared.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import structlog

from he_protocol.errors import ProblemError
from he_protocol.problems import DISK_FULL, WRONG_STATE
from he_protocol.task import Task
from he_server.jobs.closing import close
from he_server.jobs.folding import fold
from he_server.jobs.forming import form_manifest, screened, too_old
from he_server.jobs.garbage import collect_garbage
from he_server.jobs.leases import kept
from he_server.jobs.outcomes import lost
from he_server.jobs.publishing import publish
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import combining_due
from he_server.services.context import ServerContext
from he_server.store.rounds import Lease

GARBAGE_SECONDS = 3600.0
ERROR_PAUSE_SECONDS = 1.0

log = structlog.get_logger()


class Worker:
    """Advances every round of every task; several workers may share a database."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._store = server.store

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; it is looked at between steps."""
        collected = float("-inf")
        while not stop.is_set():
            self._server.news.due.clear()
            try:
                if time.monotonic() - collected > GARBAGE_SECONDS:
                    await collect_garbage(self._server, GARBAGE_SECONDS)
                    collected = time.monotonic()
                if not await self.step():
                    await _sleep(self._server.settings.poll_seconds, stop, self._server.news.due)
            except ProblemError as refusal:
                log.warning("worker refused", problem=refusal.problem.slug, detail=refusal.detail)
                await _sleep(ERROR_PAUSE_SECONDS, stop)
            except Exception:
                log.exception("worker failed")
                await _sleep(ERROR_PAUSE_SECONDS, stop)

    async def step(self) -> bool:
        """Do one unit of work that is due; False when there was none."""
        for record in await self._store.rounds.live():
            task = await self._server.tasks.get(record.task)
            if await self._advance(task, record):
                self._server.news.notify(task.id)
                return True
        return False

    async def _advance(self, task: Task, record: RoundRecord) -> bool:
        now = self._server.clock()
        if record.state == "open":
            return record.updates > 0 and await self._collect(task, record, now)
        if record.lease_until > now:
            return False
        folding = record.state == "closed" and not record.manifest  # nothing is folded any more once there is one
        if folding and (progress := await fold(self._server, task, record, now)) != "done":
            return progress == "folded"
        if not await self._due(task, record, now):
            return False
        lease = await self._store.rounds.lease(record, now, self._server.settings.lease_seconds)
        if lease is None:
            return False
        async with kept(self._server, partial(self._store.rounds.renew, lease)):
            await self._work(task, lease)
        return True

    async def _collect(self, task: Task, record: RoundRecord, now: float) -> bool:
        return await close(self._server, task, record, now) or await fold(self._server, task, record, now) == "folded"

    async def _due(self, task: Task, record: RoundRecord, now: float) -> bool:
        """Whether a round whose updates are added up can be shown to key holders, be put to the vote, or be opened."""
        if record.state == "opening":
            late = now >= record.opening_deadline
            return combining_due(task.committee, record.shares, record.tried, late=late)
        if record.manifest and not too_old(task, record, now):
            return screened(task, record, await self._store.answers.of_round(record.id))
        return await self._store.rounds.next_opening(record) is not None

    async def _work(self, task: Task, lease: Lease) -> None:
        try:
            if lease.round.state == "closed":
                await form_manifest(self._server, task, lease)
            else:
                await publish(self._server, task, lease)
        except FileNotFoundError as error:
            await lost(self._server, task, lease, str(error))
        except ProblemError as refusal:
            if refusal.problem.damage:  # the bytes were checked before they were stored
                await lost(self._server, task, lease, refusal.detail)
                return
            if refusal.problem == WRONG_STATE:  # another worker moved it, or published first
                await self._store.rounds.release(lease, lease.round.tried)
            elif refusal.problem != DISK_FULL:
                raise
            log.warning("round put off", task=task.id, round=lease.round.number, problem=refusal.problem.slug)


async def _sleep(seconds: float, *events: asyncio.Event) -> None:
    """Wait until one of the events is set, at most `seconds`."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
