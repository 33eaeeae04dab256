"""One encrypted update on its way: whole or in pieces, into the open round or the next one."""

from __future__ import annotations

import asyncio
import time

from he_client.resumable import ResumableUpload
from he_client.spool import EncryptedUpdate
from he_party.transport import Transport
from he_protocol import documents, paths
from he_protocol.errors import ProblemError
from he_protocol.messages import from_json
from he_protocol.problems import ALREADY_IN_ROUND, REFUSED_BETWEEN
from he_protocol.task import Task

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between two questions whether the next round has begun."""


class WaitInterruptedError(asyncio.CancelledError):
    """Cancelled while the next round was waited for: the server has nothing of the update. `refusal` is its word."""

    def __init__(self, refusal: ProblemError) -> None:
        super().__init__()
        self.refusal = refusal


async def send(
    transport: Transport, task: Task, encrypted: EncryptedUpdate, *, within: float, in_pieces_above: int
) -> documents.UpdateReceipt:
    """Upload until the server has a receipt for it. When this client is in the open round already, the next one is
    waited for, up to `within` seconds; then `already-in-round` is raised, as every other refusal is at once."""
    deadline, pause = time.monotonic() + within, FIRST_PAUSE
    in_pieces = encrypted.size > in_pieces_above
    while True:
        try:
            if in_pieces:
                return await ResumableUpload(transport, task, encrypted).send()
            path, server = paths.update_path(task.id, encrypted.update_id), task.config.server.name
            answer = await transport.put_frame(path, encrypted.head, encrypted.sections, server)
            return from_json(answer.body, documents.UpdateReceipt)
        except ProblemError as refusal:
            if refusal.problem == REFUSED_BETWEEN and not in_pieces:
                in_pieces = True  # what is too large for a proxy may pass in pieces
                continue
            if refusal.problem != ALREADY_IN_ROUND or time.monotonic() >= deadline:
                raise
            interrupted = WaitInterruptedError(refusal)
        try:
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            raise interrupted from None
        pause = min(pause * 1.5, LONGEST_PAUSE)
