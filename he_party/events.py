"""Changes of a task's rounds, as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

from he_protocol.documents import RoundStatus
from he_protocol.errors import ProblemError
from he_protocol.problems import TOO_LARGE
from he_protocol.task import Task


class RoundEvents(Protocol):
    """Of one server: for whoever tracks a task, beside it or in its process."""

    def changes(self, task: Task) -> AsyncIterator[RoundStatus]:
        """The newest round of the task first, then a round whenever its state has changed; ends with the server."""


async def event_data(blocks: AsyncIterable[bytes], limit: int) -> AsyncIterator[bytes]:
    """The data of each server-sent event (WHATWG HTML section 9.2) in a stream of bytes, as this protocol's servers
    write them: one line of data an event. Raises `too-large` for an event of more than `limit` bytes."""
    held = bytearray()
    async for block in blocks:
        held += block
        while (end := held.find(b"\n\n")) >= 0:
            for line in bytes(held[:end]).splitlines():
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ")
            del held[: end + 2]
        if len(held) > limit:
            raise ProblemError(TOO_LARGE, "an event is too long", expected=f"at most {limit} bytes", got="more")
