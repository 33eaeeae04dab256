"""HTTP with a HushSum server: signed requests, problem documents, retries on what is safe to retry.

Every request of the protocol is idempotent (GETs, and PUTs under a name of the sender's choice), so
all of them are retried: on lost connections, and on answers that say "later". Clients and key
holders both speak through this.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import tenacity

from he_client.identity import Identity
from he_protocol import api, framing
from he_protocol.identity import prove_request
from he_protocol.messages import decode
from he_protocol.problems import NOT_FOUND, TOO_LARGE, TRAILING_BYTES, UNREACHABLE, WRONG_SIZE, Refusal
from he_protocol.task import Task

RETRY_STATUS = frozenset({429, 502, 503, 504})
BLOCK_BYTES = 1 << 18
PROBLEM_BYTES = 1 << 16
T = TypeVar("T")
Piece = bytes | memoryview | Path


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter; seconds. `give_up` bounds one call with all its tries."""

    first: float = 0.2
    longest: float = 5.0
    give_up: float = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


class Transport:
    """One server, spoken to as one identity. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        identity: Identity,
        *,
        tls: ssl.SSLContext | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        request_seconds: float = 300.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.identity = identity
        self.clock = clock
        self._tls = tls
        self._retry = retry or RetryPolicy()
        self._timeout = aiohttp.ClientTimeout(total=request_seconds, connect=10)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def task(self, wanted: str) -> Task:
        """The task of this name or hash, its configuration verified against the authority.

        A name must be unambiguous among the server's tasks; the newest epoch of a name is taken.
        """
        listed = (await self.document("GET", api.TASKS, api.TaskList)).tasks
        tasks = [Task.from_token(t.config, self.identity.authority) for t in listed if wanted in {t.name, t.task}]
        if not tasks:
            raise Refusal(NOT_FOUND, f"the server has no task {wanted!r}", expected=", ".join(t.name for t in listed))
        return max(tasks, key=lambda task: task.config.epoch)

    async def document(self, method: str, path: str, kind: type[T], *, audience: str = "", limit: int = 1 << 26) -> T:
        """A JSON answer of the API, decoded."""
        answer = await self.request(method, path, audience=audience, limit=limit)
        return decode(answer.body, kind, limit=limit)

    async def request(
        self,
        method: str,
        path: str,
        *,
        audience: str = "",
        pieces: Sequence[Piece] = (),
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        limit: int = 1 << 28,
    ) -> Answer:
        """One request with its retries; the body is the concatenation of `pieces`.

        With `audience` (the server's name, from the task) the request is signed. Raises the server's
        refusal, or `unreachable` when it could not be asked within the retry policy.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Later),
            wait=tenacity.wait_random_exponential(multiplier=self._retry.first, max=self._retry.longest),
            stop=tenacity.stop_after_delay(self._retry.give_up),
            reraise=True,
        )
        tried = (method, path, audience, pieces, dict(headers or {}), dict(query or {}), limit)
        try:
            return await retrying(self._once, *tried)
        except _Later as later:
            raise later.refusal from None

    async def records(self, path: str, *, audience: str, size: int, count: int) -> AsyncGenerator[bytes, None]:
        """`count` records of `size` bytes each, as they arrive: one record is in memory at a time.

        Not retried: what was yielded cannot be taken back. Raises what `request` raises, `wrong-size`
        when the server sends less, and `trailing-bytes` when it sends more.
        """
        try:
            async with self._response("GET", path, audience, (), {}, {}) as response:
                for _ in range(count):
                    yield await response.content.readexactly(size)
                if await response.content.read(1):
                    raise Refusal(
                        TRAILING_BYTES, f"GET {path}", expected=f"{count} records of {size} bytes", got="more"
                    )
        except asyncio.IncompleteReadError as short:
            raise Refusal(WRONG_SIZE, f"GET {path} ended early", expected=size, got=len(short.partial)) from None
        except _Later as later:
            raise later.refusal from None

    async def put_frame(self, path: str, head: bytes, body: Sequence[Piece], audience: str) -> Answer:
        """PUT a frame: head, then the body pieces."""
        headers = {"Content-Type": framing.CONTENT_TYPE}
        return await self.request("PUT", path, audience=audience, pieces=[framing.start(head), *body], headers=headers)

    async def _once(
        self,
        method: str,
        path: str,
        audience: str,
        pieces: Sequence[Piece],
        headers: dict[str, str],
        query: dict[str, str],
        limit: int,
    ) -> Answer:
        async with self._response(method, path, audience, pieces, headers, query) as response:
            return Answer(response.status, await _read_capped(response, limit), response.headers)

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        audience: str,
        pieces: Sequence[Piece],
        headers: dict[str, str],
        query: dict[str, str],
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request's answer, its body still to be read; a problem document is raised as its refusal."""
        if self._session is None:
            raise RuntimeError("use the transport as an async context manager")
        if pieces:
            headers["Content-Length"] = str(sum(_size(piece) for piece in pieces))
        sign = (self._signing(audience, method, path),) if audience else ()
        data = _stream(pieces) if pieces else None
        try:
            async with self._session.request(
                method, self.url + path, data=data, headers=headers, params=query, middlewares=sign
            ) as response:
                if response.status >= 400:
                    refusal = Refusal.from_document(await _read_capped(response, PROBLEM_BYTES), response.status)
                    raise _Later(refusal) if response.status in RETRY_STATUS else refusal
                yield response
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            why = str(error) or type(error).__name__
            raise _Later(Refusal(UNREACHABLE, f"{method} {self.url}{path}: {why}")) from None

    def _signing(self, audience: str, method: str, path: str) -> aiohttp.ClientMiddlewareType:
        """Signs every single sending: aiohttp itself sends an idempotent request a second time when its
        connection is lost, and the server would refuse the first one's proof as a replay."""

        async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            proof = prove_request(
                self.identity.key,
                self.identity.credential,
                audience=audience,
                method=method,
                path=path,
                now=self.clock(),
                jti=secrets.token_urlsafe(16),
            )
            request.headers.update(proof)
            return await handler(request)

        return sign


class _Later(Exception):
    """The same request may well succeed in a moment; `refusal` is what came of it now."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


async def _read_capped(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for block in response.content.iter_chunked(BLOCK_BYTES):
        body += block
        if len(body) > limit:
            raise Refusal(TOO_LARGE, "the server's answer is too long", expected=f"at most {limit}", got="more")
    return bytes(body)


def _size(piece: Piece) -> int:
    return piece.stat().st_size if isinstance(piece, Path) else len(piece)


async def _stream(pieces: Sequence[Piece]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Path):
            with await asyncio.to_thread(piece.open, "rb") as file:
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    yield block
        else:
            for at in range(0, len(piece), BLOCK_BYTES):
                yield bytes(piece[at : at + BLOCK_BYTES])
