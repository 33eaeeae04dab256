"""HTTP with a HushSum server: signed requests, problem documents, retries on what is safe to retry.

Every request of the protocol is idempotent (GETs, PUTs under a name of the sender's choice, PATCHes that name
the offset where they begin), so all of them are retried: on lost connections, and on answers that say "later".
The server may lie: no redirect is followed, no cookie kept, nothing inflated, and no answer is longer than asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import aiohttp
import tenacity
from yarl import URL

from he_party.events import event_data
from he_party.files import private_directory, private_opener
from he_party.identity import Identity
from he_party.pieces import BLOCK_BYTES, Piece, size_of, stream
from he_party.transport import Answer, Transport
from he_protocol import limits
from he_protocol.errors import ProblemError
from he_protocol.headers import METHOD_OVERRIDE, OVERRIDABLE
from he_protocol.identity.requests import prove_request
from he_protocol.problems import (
    BAD_SETTINGS,
    EXPECTATION_FAILED,
    METHOD_NOT_ALLOWED,
    PROBLEMS,
    REFUSED_BETWEEN,
    TOO_LARGE,
    TRAILING_BYTES,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
    WRONG_SIZE,
    ProblemType,
)

LATER_STATUS = frozenset(problem.status for problem in PROBLEMS.values() if problem.transient)
"""What makes an answer of somebody between us and the server worth asking again: it names no problem type."""
CONNECT_SECONDS = 10.0
EXPECT_BYTES = 1 << 15
"""A larger body is sent once the server has said that it takes it (Expect: 100-continue)."""
EXPECT_SECONDS = 5.0
"""How long the server may take to say so; after that it is not asked again, but sent the body."""
BETWEEN = frozenset({403, 405, 413, 501})
"""What proxies answer to bodies and methods that they do not let through; the server names a problem type."""
TLS_ADVICE = "a certificate that the system does not know needs --tls-ca (tls_ca), a server without TLS http://"
CERTIFICATE_ADVICE = "it asks for a client certificate that it trusts: settings tls_cert and tls_key"
PROBLEM_BYTES = 1 << 16
MAX_HEADERS, MAX_HEADER_BYTES = 64, 8190
"""Of an answer: how many header fields, and how long each and the status line may be."""
ACCEPTED = frozenset({200, 201, 204})


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter; seconds.

    After `give_up` no new try begins, and one in which nothing moves for as long is left; 0 is a single try.
    """

    first: float = 0.2
    longest: float = 5.0
    give_up: float = 60.0


@dataclass(frozen=True)
class _Asked:
    """One request. `target` is what stands in its first line and in its proof: the path and the query."""

    method: str
    target: str
    audience: str = ""
    pieces: Sequence[Piece] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    limit: int = limits.DOCUMENT
    file: Path | None = None
    wait: int = 0


class HttpTransport(Transport):
    """Use as an async context manager."""

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
        self.url = checked_url(url)
        self.identity = identity
        self.clock = clock
        self._tls = tls
        self._retry = retry or RetryPolicy()
        self._request_seconds = request_seconds
        self._session: aiohttp.ClientSession | None = None
        self._asks_first = True
        """Whether large bodies wait for the server's "100 Continue": not every proxy hands it on."""
        self._overrides = False
        """Whether methods are named in POSTs: something between refuses them as they are."""

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=True,  # HTTP_PROXY, HTTPS_PROXY and NO_PROXY
            headers={"Accept-Encoding": "identity"},
            max_headers=MAX_HEADERS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

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
        """With its retries: `unreachable` when it could not be asked within the retry policy."""
        target = path + (f"?{urlencode(query)}" if query else "")
        prefer = {"Prefer": f"wait={wait}"} if wait else {}
        asked = _Asked(method, target, audience, pieces, {**(headers or {}), **prefer}, limit, wait=wait)
        return await self._retried(asked)

    async def download(
        self, path: str, file: Path, *, audience: str, limit: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        await asyncio.to_thread(private_directory, file.parent)
        try:
            return await self._retried(_Asked("GET", path, audience, (), headers or {}, limit, file))
        except BaseException:
            _remove(file)
            raise

    async def _retried(self, asked: _Asked) -> Answer:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_LaterError),
            wait=self._pause,
            stop=tenacity.stop_before_delay(self._retry.give_up),
            reraise=True,
        )
        try:
            return await retrying(self._once, asked)
        except _LaterError as later:
            raise later.refusal from None

    async def records(self, path: str, *, audience: str, size: int, count: int) -> AsyncGenerator[bytes, None]:
        try:
            async with self._response(_Asked("GET", path, audience), self._request_seconds) as response:
                for _ in range(count):
                    yield await response.content.readexactly(size)
                if await response.content.read(1):
                    raise ProblemError(
                        TRAILING_BYTES, f"GET {path}", expected=f"{count} records of {size} bytes", got="more"
                    )
        except asyncio.IncompleteReadError as short:
            raise ProblemError(WRONG_SIZE, f"GET {path} ended early", expected=size, got=len(short.partial)) from None
        except _LaterError as later:
            raise later.refusal from None

    async def events(self, path: str, *, audience: str, limit: int) -> AsyncGenerator[bytes, None]:
        try:
            async with self._response(_Asked("GET", path, audience), self._request_seconds) as response:
                async for data in event_data(response.content.iter_any(), limit):
                    yield data
        except _LaterError as later:
            raise later.refusal from None

    async def _once(self, asked: _Asked) -> Answer:
        patience = min(self._retry.give_up or self._request_seconds, self._request_seconds)
        async with self._response(asked, patience + asked.wait) as response:
            if asked.file is None:
                return Answer(response.status, await _read_capped(response, asked.limit), response.headers)
            sha256 = await _save_capped(response, asked.file, asked.limit)
            return Answer(response.status, b"", response.headers, sha256)

    @asynccontextmanager
    async def _response(self, asked: _Asked, patience: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request's answer, its body still to be read; a problem document is raised as its refusal.

        It is given up after `patience` seconds in which nothing moved, in either direction.
        """
        if self._session is None:
            raise RuntimeError("use the transport as an async context manager")
        size, headers = sum(size_of(piece) for piece in asked.pieces), dict(asked.headers)
        if asked.pieces:
            headers["Content-Length"] = str(size)
        sign = (self._signing(asked),) if asked.audience else ()
        overridden = self._overrides and asked.method in OVERRIDABLE
        if overridden:
            headers[METHOD_OVERRIDE] = asked.method
        asks_first, moving = size > EXPECT_BYTES and self._asks_first, False
        loop = asyncio.get_running_loop()
        bounds = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=patience)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(min(patience, EXPECT_SECONDS) if asks_first else patience) as waiting:

                    def moved() -> None:
                        nonlocal moving
                        moving = True
                        with suppress(RuntimeError):  # the server may answer before it has read everything
                            waiting.reschedule(loop.time() + patience)

                    sending = self._session.request(
                        "POST" if overridden else asked.method,
                        URL(self.url + asked.target, encoded=True),
                        data=stream(asked.pieces, moved) if asked.pieces else None,
                        headers=headers,
                        allow_redirects=False,
                        middlewares=sign,
                        timeout=bounds,
                        expect100=asks_first,
                    )
                    response = await stack.enter_async_context(sending)
                if response.status >= 400:
                    raise await self._refused(asked, response, asks_first=asks_first, overridden=overridden)
                check_answer(response.status, response.headers, conditional="If-None-Match" in headers)
                yield response
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            advice = CERTIFICATE_ADVICE if refuses_certificate(error.__cause__) else TLS_ADVICE
            raise ProblemError(BAD_SETTINGS, f"{self.url}: {error}; {advice}") from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if refuses_certificate(error.__cause__):
                raise ProblemError(BAD_SETTINGS, f"{self.url}: {error}; {CERTIFICATE_ADVICE}") from None
            if asks_first and not moving and isinstance(error, TimeoutError):
                self._asks_first = False
            why = str(error) or type(error).__name__
            raise _LaterError(ProblemError(UNREACHABLE, f"{asked.method} {self.url}{asked.target}: {why}")) from None

    async def _refused(
        self, asked: _Asked, response: aiohttp.ClientResponse, *, asks_first: bool, overridden: bool
    ) -> Exception:
        """What an answer of 400 or more is raised as. A way of asking that something between does not know is left."""
        body = await _read_capped(response, PROBLEM_BYTES)
        refusal = ProblemError.from_document(body, response.status)
        if refusal.problem is UNEXPECTED_ANSWER and response.status == 400 and b"SSL certificate" in body:  # nginx
            return ProblemError(BAD_SETTINGS, f"{self.url}: {CERTIFICATE_ADVICE}", got=f"HTTP {response.status}")
        if response.status == EXPECTATION_FAILED.status and asks_first:
            self._asks_first = False
            return _LaterError(refusal)
        lost = overridden and refusal.problem is METHOD_NOT_ALLOWED  # the server saw a POST that names no method
        if lost or (refusal.problem is UNEXPECTED_ANSWER and response.status in BETWEEN):
            refusal = ProblemError(REFUSED_BETWEEN, f"{asked.method} {self.url}", got=f"HTTP {response.status}")
            if response.status == TOO_LARGE.status or asked.method not in OVERRIDABLE:
                return refusal
            self._overrides = not overridden
            return refusal if overridden else _LaterError(refusal)
        if not passes_soon(refusal.problem, response.status):
            return refusal
        return _LaterError(refusal, parse_retry_after(response.headers.get("Retry-After", "")))

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next try: the back-off or what the server asked for, at most the policy's longest."""
        backoff = tenacity.wait_random_exponential(multiplier=self._retry.first, max=self._retry.longest)
        later = state.outcome.exception() if state.outcome is not None else None
        asked = later.after if isinstance(later, _LaterError) else 0.0
        return min(max(asked, backoff(state)), self._retry.longest)

    def _signing(self, asked: _Asked) -> aiohttp.ClientMiddlewareType:
        """Signs every single sending: aiohttp itself sends an idempotent request a second time when its
        connection is lost, and the server would refuse the first one's proof as a replay."""

        async def sign(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            proof = prove_request(
                self.identity.key,
                self.identity.credential,
                audience=asked.audience,
                method=asked.method,
                path=asked.target,
                now=self.clock(),
                jti=secrets.token_urlsafe(16),
            )
            request.headers.update(proof)
            return await handler(request)

        return sign


class _LaterError(Exception):
    """The same request may succeed later; `refusal` is the error of the last attempt."""

    def __init__(self, refusal: ProblemError, after: float = 0.0) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.after = after


def checked_url(url: str) -> str:
    """A server's URL, with a path where a proxy puts it below one. Raises `bad-settings` for what can never work."""
    try:
        parsed = URL(url.strip().rstrip("/"))
        port = parsed.port
    except ValueError as error:
        raise ProblemError(BAD_SETTINGS, f"the server's URL: {error}", got=url[:200]) from None
    plain = not (parsed.query_string or parsed.fragment or parsed.user or parsed.password)
    if parsed.scheme not in {"http", "https"} or not parsed.host or not port or not plain:
        expected = "http:// or https://, a host, perhaps a port and a path"
        raise ProblemError(BAD_SETTINGS, "the server's URL", expected=expected, got=url[:200])
    return str(parsed).rstrip("/")


def passes_soon(problem: ProblemType, status: int) -> bool:
    """Whether the same request may pass in a moment; where no known problem came, only the status can tell."""
    return status in LATER_STATUS if problem is UNEXPECTED_ANSWER else problem.transient


def refuses_certificate(error: BaseException | None) -> bool:
    """Whether this is TLS's word of the other side that our certificate is missing, or not to its liking (RFC 8446
    section 6.2). Under TLS 1.3 it comes after the handshake."""
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    return "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)


def parse_retry_after(value: str) -> float:
    """Seconds that a Retry-After header names (RFC 9110 section 10.2.3), 0 for a date or anything else."""
    return float(value) if value.isascii() and value.isdigit() and len(value) <= 9 else 0.0


def check_answer(status: int, headers: Mapping[str, str], *, conditional: bool) -> None:
    """An answer that the protocol has, its body as it is: whoever asks is sent nowhere else, and inflates nothing.

    conditional: a 304 is among the answers. Raises `unexpected-answer`.
    """
    if status not in ACCEPTED and not (status == 304 and conditional):
        raise ProblemError(
            UNEXPECTED_ANSWER, "the status of an answer", expected="200, 201 or 204", got=f"HTTP {status}"
        )
    if (coding := headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise ProblemError(UNEXPECTED_ANSWER, "Content-Encoding", expected="none", got=coding[:80])


async def _read_capped(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for block in _blocks(response, limit):
        body += block
    return bytes(body)


async def _save_capped(response: aiohttp.ClientResponse, path: Path, limit: int) -> bytes:
    """SHA-256 of the body that is then in the file; a block is in memory at a time."""
    digest = hashlib.sha256()
    with await asyncio.to_thread(open, path, "wb", opener=private_opener) as file:
        async for block in _blocks(response, limit):
            digest.update(block)
            await asyncio.to_thread(file.write, block)
    return digest.digest()


async def _blocks(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """The body, up to `limit` bytes of it. Raises `too-large`."""
    read, declared = 0, response.content_length or 0
    async for block in response.content.iter_chunked(BLOCK_BYTES):
        read += len(block)
        if max(read, declared) > limit:
            raise ProblemError(
                TOO_LARGE, "the server's answer is too long", expected=f"at most {limit} bytes", got="more"
            )
        yield block


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
