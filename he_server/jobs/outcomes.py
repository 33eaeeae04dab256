"""How rounds end: published or failed, counted, logged, and their bytes dropped."""

from __future__ import annotations

import structlog

from he_protocol.problems import INTERNAL, ProblemType
from he_protocol.task import Task
from he_server.jobs.garbage import drop_round
from he_server.rules.records import RoundRecord
from he_server.services.context import ServerContext
from he_server.store.rounds import Lease

log = structlog.get_logger()


async def fail(
    server: ServerContext, task: Task, lease: Lease, problem: ProblemType, detail: str, seconds: dict[str, float]
) -> None:
    """End a round without a sum."""
    await server.store.rounds.fail(lease, problem, detail, server.clock(), seconds)
    server.metrics.observe_stages(seconds)
    await ended(server, task, lease.round, "failed", problem.urn)


async def ended(server: ServerContext, task: Task, record: RoundRecord, state: str, problem: str) -> None:
    """What follows the end of a round, however it ended."""
    server.news.heard(task.id)
    server.metrics.rounds.labels(state, problem).inc()
    log.info("round ended", task=task.id, round=record.number, state=state, problem=problem)
    await drop_round(server, record.id)


async def lost(server: ServerContext, task: Task, lease: Lease, error: str) -> None:
    """Fail a round whose stored bytes are gone or damaged; not if the lease is lost, and the bytes with it."""
    if await server.store.rounds.renew(lease, server.clock(), server.settings.lease_seconds):
        log.error("bytes of a round are gone", task=task.id, round=lease.round.number, error=error)
        await fail(server, task, lease, INTERNAL, "stored bytes of the round are gone", {})
