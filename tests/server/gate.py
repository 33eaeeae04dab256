"""A TCP relay in front of a database, which can be cut in the middle of a conversation, shut, and opened again."""

from __future__ import annotations

import asyncio
from typing import Self

from sqlalchemy import make_url


class Gate:
    """Relays to the database of `upstream`. `url` is the same database through the gate.

    `after` messages more from the client (None: for ever) the connection that sends the next one is cut.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = make_url(upstream)
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.after: int | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.open()
        self.url = self._upstream.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.shut()

    async def open(self) -> None:
        """Take connections (again), at the same port."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Cut every connection and take no new one."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, forward = await asyncio.open_connection(self._upstream.host, self._upstream.port or 5432)
        self._writers |= {writer, forward}
        answers = asyncio.create_task(self._answers(upstream, writer))
        try:
            while data := await reader.read(1 << 16):
                if self.after is not None:
                    self.after -= 1
                    if self.after < 0:
                        self.after = None
                        break
                forward.write(data)
                await forward.drain()
        except OSError:
            pass  # one end has gone; so does the other
        finally:
            answers.cancel()
            writer.transport.abort()
            forward.transport.abort()
            self._writers -= {writer, forward}

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
