"""Waiting for what becomes of an update that the server has."""

from __future__ import annotations

import asyncio
import time

from he_client.spool import is_update_id
from he_party.http_transport import HttpTransport
from he_protocol import documents
from he_protocol import paths as api_paths
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND, PROBLEMS, UNEXPECTED_ANSWER, UNREACHABLE, URN
from he_protocol.task import Task

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks."""


async def decided(transport: HttpTransport, task: Task, update_id: str, within: float) -> int:
    """The model version that an acknowledged update went into; see `HushSumClient.wait`."""
    if not is_update_id(update_id):
        raise ProblemError(NOT_FOUND, "no such update", expected="32 lower-case hex digits", got=update_id)
    path = api_paths.update_path(task.id, update_id)
    deadline = time.monotonic() + within
    pause = FIRST_PAUSE
    while True:
        status = await transport.document("GET", path, documents.UpdateStatus, audience=task.config.server.name)
        if status.failure is not None:  # also of a published round: the update's bucket was dropped
            problem = PROBLEMS.get(status.failure.type.removeprefix(URN), UNEXPECTED_ANSWER)
            raise ProblemError(problem, f"round {status.round}: {status.failure.detail}")
        if status.state == "published":
            return status.version
        if time.monotonic() > deadline:
            raise ProblemError(UNREACHABLE, f"round {status.round} is still {status.state} after {within} s")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
