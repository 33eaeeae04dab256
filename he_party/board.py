"""A task's bulletin board: where its key holders post, and everybody reads.

It need not be trusted: every post is signed by its holder, and readers check what they read.
"""

from __future__ import annotations

from typing import Protocol

from he_party.transport import Transport
from he_protocol import documents, limits, paths
from he_protocol.task import Task


class Board(Protocol):
    """The board of one task."""

    async def posts(self, phase: str) -> dict[str, str]:
        """The committee's signed messages of a phase, by holder."""

    async def body(self, phase: str, holder: str, limit: int) -> bytes:
        """What a holder posted with its message. Raises `not-found`, or `too-large` beyond `limit` bytes."""

    async def post(self, phase: str, holder: str, message: str, body: bytes = b"") -> None:
        """Post for a holder, once and for all: raises `ceremony-conflict` for another message than the first."""


class ServerBoard:
    """The board that a server keeps."""

    def __init__(self, transport: Transport, task: Task) -> None:
        self._transport = transport
        self._task = task
        self._server = task.config.server.name

    async def posts(self, phase: str) -> dict[str, str]:
        path = paths.board_path(self._task.id, phase)
        board = await self._transport.document(
            "GET", path, documents.Board, audience=self._server, limit=limits.board(self._task)
        )
        committee = {holder.name for holder in self._task.config.committee.holders}
        return {post.holder: post.message for post in board.posts if post.holder in committee}

    async def body(self, phase: str, holder: str, limit: int) -> bytes:
        path = paths.post_path(self._task.id, phase, holder)
        return (await self._transport.request("GET", path, audience=self._server, limit=limit)).body

    async def post(self, phase: str, holder: str, message: str, body: bytes = b"") -> None:
        path = paths.post_path(self._task.id, phase, holder)
        await self._transport.put_frame(path, message.encode(), [body], self._server)
