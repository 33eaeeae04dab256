"""Taking connections: each is counted from the moment it is accepted, its TLS handshake included."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine

import structlog

from he_protocol.errors import ProblemError
from he_server.http.openapi import PROBLEM
from he_server.services.connections import Connection, ConnectionLimiter, LimitedProtocol

HANDSHAKE_SECONDS = 10.0
BACKLOG = 1024
TELLING_SECONDS = 1.0
TOLD = 64
"""Connections beyond those that may be which are told why they are refused, for so long; others are closed at once."""
_TRY_LATER = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger()


class Listener:
    """Accepts connections for `protocols`, each of which the limiter has let in before a byte of it is read."""

    def __init__(
        self, protocols: Callable[[], asyncio.Protocol], limiter: ConnectionLimiter, context: ssl.SSLContext | None
    ) -> None:
        self._protocols = protocols
        self._limiter = limiter
        self._context = context
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = 0

    async def start(self, host: str, port: int) -> int:
        """Listen on every address of `host`; the port, also where 0 asked for a free one. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in {entry[0]: entry[4] for entry in reversed(found)}.items():
            bound = socket.create_server((address[0], port), family=family, backlog=BACKLOG)
            bound.setblocking(False)
            self._sockets.append(bound)
            port = int(bound.getsockname()[1])
        for bound in self._sockets:
            self._keep(self._accept(bound))
        return port

    async def stop(self) -> None:
        """Accept no more; connections that are there stay."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for bound in self._sockets:
            bound.close()

    async def _accept(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(bound)
            except OSError as error:
                if error.errno in _TRY_LATER:
                    log.error("cannot accept a connection", error=str(error))
                    await asyncio.sleep(TELLING_SECONDS)
                continue
            connection = Connection(str(address[0]))
            try:
                self._limiter.enter(connection)
            except ProblemError as refusal:
                self._refuse(accepted, refusal)
            else:
                task = self._keep(self._serve(accepted, connection))
                connection.abort = task.cancel

    async def _serve(self, accepted: socket.socket, connection: Connection) -> None:
        limited = LimitedProtocol(self._protocols(), self._limiter, connection)
        try:
            await self._connect(accepted, limited)
        except BaseException as error:
            self._limiter.leave(connection)
            accepted.close()
            if not isinstance(error, OSError):  # which is a handshake that failed, or took too long
                raise

    def _refuse(self, accepted: socket.socket, refusal: ProblemError) -> None:
        if self._told < TOLD:
            self._keep(self._tell(accepted, refusal))
        else:
            accepted.close()

    async def _tell(self, accepted: socket.socket, refusal: ProblemError) -> None:
        self._told += 1
        try:
            async with asyncio.timeout(TELLING_SECONDS):
                await self._connect(accepted, told := _Told(refusal))
                await told.gone.wait()
        except (OSError, TimeoutError):
            pass
        finally:
            self._told -= 1
            accepted.close()

    async def _connect(self, accepted: socket.socket, protocol: asyncio.Protocol) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol,
            accepted,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else HANDSHAKE_SECONDS,
        )

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Told(asyncio.Protocol):
    """A connection that gets a refusal, whatever it asks for."""

    def __init__(self, refusal: ProblemError) -> None:
        self._refusal = refusal
        self._transport: asyncio.Transport
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        problem, body = self._refusal.problem, self._refusal.document()
        lines = [
            f"HTTP/1.1 {problem.status} {problem.title}",
            f"Content-Type: {PROBLEM}",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Connection: close",
        ]
        self._transport = transport
        transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def data_received(self, _data: bytes) -> None:
        """Its request, which is not read; the answer is on its way already."""
        self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.gone.set()
