"""HTTP between machines without sockets: aiohttp's own client and server protocols, joined in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from .machine import ACTIVITY, MACHINE, Crashed, Machine, point

Protocols = Callable[[], asyncio.BaseProtocol]
Watch = Callable[[Machine, object, bytes], None]
"""(whose write, the connection's end, the bytes)"""


@dataclass
class Network:
    """Who listens under which host name. `watch` sees every write before it leaves its machine."""

    watch: Watch
    hosts: dict[str, tuple[Machine, Protocols]] = field(default_factory=dict)

    def connector(self, **_: object) -> aiohttp.BaseConnector:
        """Stands in for `aiohttp.TCPConnector`."""
        return _Connector(self)

    def connect(self, host: str, client: ResponseHandler) -> None:
        """Join a client's protocol to a host. Raises ConnectionRefusedError."""
        found, here = self.hosts.get(host), MACHINE.get()
        assert here is not None
        if found is None or not found[0].alive:
            raise ConnectionRefusedError(host)
        there, protocols = found
        context = copy_context()
        context.run(MACHINE.set, there)
        near, far = _End(self, here, client, copy_context()), _End(self, there, context.run(protocols), context)
        near.peer, far.peer = far, near
        for end in (near, far):
            end.machine.unplug.append(end.lose)
            end.context.run(end.protocol.connection_made, end)


class _Connector(aiohttp.BaseConnector):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    async def _create_connection(self, req: aiohttp.ClientRequest, traces: Any, timeout: Any) -> ResponseHandler:
        protocol = ResponseHandler(self._loop)
        assert req.url.host is not None
        self._network.connect(req.url.host, protocol)
        return protocol


class _End(asyncio.Transport):
    """One end of a connection. What is written arrives a moment later, in the other machine's context."""

    peer: _End

    def __init__(self, network: Network, machine: Machine, protocol: Any, context: Context) -> None:
        super().__init__()
        self.machine = machine
        self.protocol = protocol
        self.context = context
        self._network = network
        self._closing = self._gone = False
        self._paused = False
        self._held: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        point()
        sent, activity = bytes(data), ACTIVITY.get()
        self._network.watch(self.machine, self, sent)
        broken = activity is not None and activity.breaks()
        if broken:
            sent = sent[: len(sent) // 2]
        self._soon(self.peer._arrive, sent)
        if broken:
            self.lose()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def _arrive(self, data: bytes) -> None:
        if self._paused:
            self._held.append(data)
        elif not self._gone and self.machine.alive:
            self._guard(self.protocol.data_received, data)

    def lose(self) -> None:
        """The connection is gone, for both ends."""
        for end in (self, self.peer):
            if not end._closing:
                end._closing = True
                end._soon(end._lost)

    def _lost(self) -> None:
        self._gone = True
        self._guard(self.protocol.connection_lost, None)

    def _guard(self, call: Callable[..., object], *args: object) -> None:
        with suppress(Crashed):
            call(*args)

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        loop = asyncio.get_running_loop()
        owner = call.__self__  # type: ignore[attr-defined]
        loop.call_soon(call, *args, context=owner.context)

    def close(self) -> None:
        self.lose()

    def abort(self) -> None:
        self.lose()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        held, self._held = self._held, []
        for data in held:
            self._soon(self._arrive, data)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("memory", 0) if name in {"peername", "sockname"} else default
