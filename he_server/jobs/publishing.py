"""From the shares of a round to its publication, to its failure, or to waiting for other shares."""

from __future__ import annotations

import time

import structlog

from he_protocol.errors import ProblemError
from he_protocol.task import Task
from he_server.jobs.opening import Opened, Waiting, decrypt_sum, released_shares
from he_server.jobs.outcomes import ended, fail
from he_server.rules.rounds import enough_shares
from he_server.services.context import ServerContext
from he_server.store.rounds import Lease

log = structlog.get_logger()


async def publish(server: ServerContext, task: Task, lease: Lease) -> None:
    """Try to open a round with the shares at hand; publish, wait, or fail it."""
    current = lease.round
    start = time.monotonic()
    now = server.clock()
    waited = now - (current.opening_deadline - task.config.rounds.opening_seconds)
    released = released_shares(task, await server.store.shares.of_round(current.id))
    base = await server.store.models.get(task.id)
    whole, late = sum(not item.share.failed for item in released), now >= current.opening_deadline
    last = enough_shares(task.committee, len(released), whole, binding=task.scheme.binding, late=late)
    outcome = await decrypt_sum(server, task, current, base, released, last=last)
    wrong = [bucket.failure for bucket in outcome.dropped] if isinstance(outcome, Opened) else [outcome]
    for failure in wrong:
        log.warning("shares do not open a sum", task=task.id, round=current.number, detail=failure.detail)
    if isinstance(outcome, Waiting):
        await server.store.rounds.release(lease, len(released))
        return
    if isinstance(outcome, ProblemError):
        await fail(server, task, lease, outcome.problem, outcome.detail, {"wait_shares": waited})
        return
    seconds = {"wait_shares": waited, "open": time.monotonic() - start}
    await server.store.rounds.publish(
        lease, base.version + 1, outcome.sha256, server.clock(), seconds, outcome.dropped, outcome.metrics
    )
    server.metrics.observe_stages(seconds)
    await ended(server, task, current, "published", "")
