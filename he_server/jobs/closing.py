"""The end of a round's time for updates."""

from __future__ import annotations

from he_protocol.task import Task
from he_server.jobs.outcomes import ended
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import at_deadline
from he_server.services.context import ServerContext


async def close(server: ServerContext, task: Task, record: RoundRecord, now: float) -> bool:
    """Close an open round, or fail it, at its deadline; False before."""
    if at_deadline(record.updates, task.config.rounds.min_clients, record.deadline, now) == "wait":
        return False
    moved = await server.store.rounds.close_due(task, record, now)
    if moved is None:
        return False
    server.metrics.observe_stages({"collect": moved.seconds["collect"]})
    if moved.state == "failed":
        await ended(server, task, moved, "failed", moved.failure_type)
    return True
