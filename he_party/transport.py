"""What clients and key holders need of the way to a server. `he_party.http_transport` is the one over HTTP."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from he_party import tasks
from he_party.identity import Identity
from he_party.pieces import Piece
from he_protocol import documents, frames, limits, paths
from he_protocol.messages import from_json
from he_protocol.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """`body` is empty, and `sha256` that of its bytes, where the body went to a file."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    sha256: bytes = b""


class Transport(Protocol):
    """One server, spoken to as one identity. `url` is for people to read.

    Every request of the protocol is idempotent, so that an implementation may repeat it. The server may lie: no answer
    is longer than the caller says that an honest one can be (`he_protocol.limits`).
    """

    url: str
    identity: Identity

    @abstractmethod
    async def request(
        self,
        method: str,
        path: str,
        *,
        audience: str = "",
        pieces: Sequence[Piece] = (),
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        limit: int = limits.DOCUMENT,
        wait: int = 0,
    ) -> Answer:
        """The answer to one request; its body is the concatenation of `pieces`.

        With `audience` (the server's name, from the task) the request is signed. A server with nothing new may keep the
        answer back for `wait` seconds (RFC 7240 section 4.3). Raises the server's refusal, `unreachable` when it could
        not be asked, `too-large` for an answer of more than `limit` bytes, or `unexpected-answer`.
        """

    @abstractmethod
    async def download(
        self, path: str, file: Path, *, audience: str, limit: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to a GET, its body in `file`, which is gone again when anything is raised.

        Raises what `request` raises.
        """

    @abstractmethod
    def records(self, path: str, *, audience: str, size: int, count: int) -> AsyncGenerator[bytes, None]:
        """`count` records of `size` bytes each, as they arrive: one record is in memory at a time.

        Not repeated: what was yielded cannot be taken back. Raises what `request` raises, `wrong-size`
        when the server sends less, and `trailing-bytes` when it sends more.
        """

    @abstractmethod
    def events(self, path: str, *, audience: str, limit: int) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event (WHATWG HTML section 9.2), as they come, until the server ends the stream.

        Not repeated: whoever listens again is told the present state first. Raises what `request` raises, and
        `too-large` for an event of more than `limit` bytes.
        """

    async def document(
        self, method: str, path: str, kind: type[T], *, audience: str = "", limit: int = limits.DOCUMENT
    ) -> T:
        """A JSON answer of the API, decoded."""
        answer = await self.request(method, path, audience=audience, limit=limit)
        return from_json(answer.body, kind, limit=limit)

    async def put_frame(self, path: str, head: bytes, body: Sequence[Piece], audience: str) -> Answer:
        """PUT a frame: head, then the body pieces."""
        headers = {"Content-Type": frames.CONTENT_TYPE}
        return await self.request("PUT", path, audience=audience, pieces=[frames.start(head), *body], headers=headers)

    async def task(self, wanted: str, memory: tasks.TaskMemory | None = None) -> Task:
        """The task of this hash, or the newest epoch of this name: by what the authority signed.

        With a memory, a name never leads to an older epoch than the newest that it has seen. Raises what `tasks.choose`
        raises.
        """
        document = await self.document("GET", paths.TASKS, documents.TaskList, limit=limits.TASK_LIST)
        listed = await asyncio.to_thread(tasks.read, document.tasks, self.identity.authority)
        tasks.log_refused(listed)
        if memory is None:
            return tasks.choose(listed, wanted)
        task = tasks.choose(listed, wanted, await asyncio.to_thread(memory.seen))
        await asyncio.to_thread(memory.learn, task)
        return task
