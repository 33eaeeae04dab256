"""The way to a server that is a table, for tests of what speaks to one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from he_party.events import event_data
from he_party.files import private_directory, private_opener
from he_party.identity import Identity
from he_party.pieces import Piece
from he_party.transport import Answer, Transport
from he_protocol import limits
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND, TOO_LARGE, TRAILING_BYTES, WRONG_SIZE


class Asked(NamedTuple):
    """A request that came. `target`: the path and the query."""

    method: str
    target: str
    body: bytes
    audience: str


class MemoryTransport(Transport):
    """`answers`: the body, or the refusal, that a method and a target are answered with; others are `not-found`.

    `asked` is every request so far.
    """

    def __init__(self, identity: Identity, url: str = "http://memory") -> None:
        self.identity = identity
        self.url = url
        self.answers: dict[tuple[str, str], bytes | ProblemError] = {}
        self.asked: list[Asked] = []

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
        target = path + (f"?{urlencode(query)}" if query else "")
        sent = [piece.read_bytes() if isinstance(piece, Path) else bytes(piece) for piece in pieces]
        body = self._answer(Asked(method, target, b"".join(sent), audience))
        if len(body) > limit:
            raise ProblemError(TOO_LARGE, "the server's answer", expected=f"at most {limit} bytes", got=len(body))
        return Answer(200, body, {})

    async def download(
        self, path: str, file: Path, *, audience: str, limit: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        answer = await self.request("GET", path, audience=audience, headers=headers, limit=limit)
        await asyncio.to_thread(private_directory, file.parent)
        with await asyncio.to_thread(open, file, "wb", opener=private_opener) as out:
            out.write(answer.body)
        return Answer(answer.status, b"", answer.headers, hashlib.sha256(answer.body).digest())

    async def records(self, path: str, *, audience: str, size: int, count: int) -> AsyncGenerator[bytes, None]:
        body = self._answer(Asked("GET", path, b"", audience))
        for at in range(0, size * count, size):
            if len(body) < at + size:
                raise ProblemError(WRONG_SIZE, f"GET {path} ended early", expected=size, got=max(0, len(body) - at))
            yield body[at : at + size]
        if len(body) > size * count:
            raise ProblemError(TRAILING_BYTES, f"GET {path}", expected=size * count, got=len(body))

    async def events(self, path: str, *, audience: str, limit: int) -> AsyncGenerator[bytes, None]:
        async def blocks() -> AsyncIterator[bytes]:
            yield self._answer(Asked("GET", path, b"", audience))

        async for data in event_data(blocks(), limit):
            yield data

    def _answer(self, asked: Asked) -> bytes:
        self.asked.append(asked)
        answer = self.answers.get((asked.method, asked.target))
        if isinstance(answer, bytes):
            return answer
        raise answer or ProblemError(NOT_FOUND, f"{asked.method} {asked.target}")
