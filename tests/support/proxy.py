"""A proxy between a client and a server that records every request and breaks some as told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

Fault = Literal["pass", "lost", "dropped"] | web.Response | Callable[[bytes], bytes]
"""What happens to one request: it passes; it is lost before the server saw it; the server handles it
but its response is dropped; this response is given instead; or the response's body is changed."""


KEPT = ("ETag", "HushSum-Model", "Location", "Upload-Offset", "Upload-Length")
"""Headers of answers that pass."""


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Proxy:
    """In front of `upstream`; `tls` is its own, if any. `faults`: what happens to the next requests of a method.

    largest: of a request's body, in bytes; it refuses more, as proxies do. closed: methods that it answers with this
    status itself. loses: fields of requests that do not arrive. tags: what it puts in the place of these
    fields, of requests and answers, where they are; "" leaves them out. answered: the upstream's statuses.
    """

    upstream: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    tls: ssl.SSLContext | None = None
    largest: int = 1 << 40
    closed: dict[str, int] = field(default_factory=dict)
    loses: frozenset[str] = frozenset()
    tags: dict[str, str] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)

    def of(self, method: str) -> list[Seen]:
        return [request for request in self.seen if request.method == method]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._server = TestServer(app)
        await self._server.start_server(ssl=self.tls)
        self._session = aiohttp.ClientSession()
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._server.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.method, request.path, dict(request.headers), body))
        if len(body) > self.largest:
            return web.Response(status=413, text="<html>413 Request Entity Too Large</html>")
        if request.method in self.closed:
            return web.Response(status=self.closed[request.method], text="<html>not here</html>")
        waiting = self.faults.get(request.method, [])
        fault = waiting.pop(0) if waiting else "pass"
        if isinstance(fault, web.Response):  # one object cannot be sent twice, and tests share theirs
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if fault == "lost":
            return _hang_up(request)
        headers = self._tagged(
            {name: v for name, v in request.headers.items() if name not in {"Host", "Content-Length", *self.loses}}
        )
        async with self._session.request(
            request.method, self.upstream + request.path_qs, data=body or None, headers=headers
        ) as answer:
            content = await answer.read()
        self.answered.append(answer.status)
        if fault == "dropped":
            return _hang_up(request)
        if callable(fault):
            content = fault(content)
        kept = self._tagged({name: answer.headers[name] for name in KEPT if name in answer.headers})
        return web.Response(body=content, status=answer.status, headers=kept, content_type=answer.content_type)

    def _tagged(self, headers: dict[str, str]) -> dict[str, str]:
        changed = {name: self.tags.get(name, value) for name, value in headers.items()}
        return {name: value for name, value in changed.items() if value}


def _hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@dataclass
class Wire:
    """A TCP connection to `port` that breaks: each goes on for as many bytes from the client as `budgets` says next."""

    port: int
    budgets: Iterator[int]
    cuts: int = 0
    url: str = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, forward = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.create_task(_copy(upstream, writer))
        left = next(self.budgets)
        try:
            while left and (data := await reader.read(left)):
                forward.write(data)
                await forward.drain()
                left -= len(data)
            self.cuts += not left
        except OSError:
            pass  # one end has gone; so does the other
        finally:
            answers.cancel()
            forward.close()
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
