"""Limits on open connections: in all, for each address that has proved nothing, and for each party.

When a limit is reached, the stranger that has been idle longest is disconnected. So a party that is about to prove
itself always gets a connection, however many others only hold one. Bytes that strangers send unasked are bounded too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from he_protocol.errors import ProblemError
from he_protocol.problems import TOO_MANY_CONNECTIONS

HELD_BYTES = 32 * 1024 * 1024
"""Bytes that all strangers together may have sent without being asked: heads of requests, and what follows them."""
ONE_HOLDS = 3 * 512 * 1024
"""And one of them: a head, and the rest of a body that was refused. More is pipelined, behind an unanswered request."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections at once: in all, of the strangers at one address, and of one party."""

    in_all: int
    address: int
    party: int


@dataclass(eq=False)
class Connection:
    """One connection. `party` is the public key of the party that last proved itself on it, empty for a stranger.

    `busy` while a request is answered, `reading` while its body is read by the route's leave. `asked` counts
    requests of strangers, `held` bytes that came unasked.
    """

    address: str = ""
    party: bytes = b""
    busy: bool = False
    reading: bool = False
    asked: int = 0
    held: int = 0
    open: bool = False
    abort: Callable[[], object] = lambda: None

    @property
    def stranger(self) -> bool:
        return not self.party


class ConnectionLimiter:
    """Counts the connections of one process, and ends them."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._all: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}  # in the order in which they came
        self._addresses: dict[str, dict[Connection, None]] = {}
        self._parties: dict[bytes, set[Connection]] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, connection: Connection) -> None:
        """A new connection, by a stranger. Raises `too-many-connections` when no idle stranger can be disconnected."""
        same = self._addresses.get(connection.address, {})
        if len(same) >= self._limits.address and not self._shut_out(same):
            raise _too_many("of strangers at this address", self._limits.address)
        if len(self._all) >= self._limits.in_all and not self._shut_out(self._strangers):
            raise _too_many("at once", self._limits.in_all)
        connection.open = True
        self._all.add(connection)
        self._join(connection)

    def leave(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection.open:
            connection.open = False
            self._all.discard(connection)
            self._detach(connection)

    def prove(self, connection: Connection, party: bytes) -> None:
        """The sender proved that it is `party`. Raises `too-many-connections` when that party has as many as it may."""
        if connection.party == party:
            return
        if connection.open and len(self._parties.get(party, ())) >= self._limits.party:
            raise _too_many("of one party", self._limits.party)
        self._detach(connection)
        connection.party = party
        self._join(connection)

    def doubt(self, connection: Connection) -> None:
        """A proof was wrong: the connection counts as a stranger's again."""
        self._detach(connection)
        connection.party = b""
        self._join(connection)

    def received(self, connection: Connection, size: int) -> None:
        """Bytes came. A stranger that holds too many goes; when all together do, those with the most."""
        if connection.party or connection.reading:
            return
        connection.held += size
        self._held += size
        if connection.held > ONE_HOLDS:
            self._end(connection)
        while self._held > HELD_BYTES:
            self._end(max(self._strangers, key=lambda one: one.held))

    def consumed(self, connection: Connection, size: int) -> None:
        """`size` bytes that a stranger sent are no longer in memory."""
        freed = min(size, connection.held)
        connection.held -= freed
        if connection.open:
            self._held -= freed

    def _shut_out(self, among: Iterable[Connection]) -> bool:
        """End the oldest idle connection among these; whether there was one."""
        idle = next((connection for connection in among if not connection.busy), None)
        if idle is None:
            return False
        self._end(idle)
        return True

    def _end(self, connection: Connection) -> None:
        self.leave(connection)
        connection.abort()

    def _join(self, connection: Connection) -> None:
        if not connection.open:
            return
        if connection.stranger:
            self._strangers[connection] = None
            self._addresses.setdefault(connection.address, {})[connection] = None
        else:
            self._parties.setdefault(connection.party, set()).add(connection)

    def _detach(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)
        same = self._addresses.get(connection.address, {})
        same.pop(connection, None)
        if not same:
            self._addresses.pop(connection.address, None)
        theirs = self._parties.get(connection.party, set())
        theirs.discard(connection)
        if not theirs:
            self._parties.pop(connection.party, None)
        self._held -= connection.held
        connection.held = 0


def _too_many(which: str, most: int) -> ProblemError:
    return ProblemError(TOO_MANY_CONNECTIONS, f"connections {which}", expected=f"at most {most}")


class LimitedProtocol(asyncio.Protocol):
    """HTTP's protocol behind the limiter, which hears of every byte first."""

    def __init__(self, inner: asyncio.Protocol, limiter: ConnectionLimiter, connection: Connection) -> None:
        self._inner = inner
        self._limiter = limiter
        self.connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._inner.connection_made(transport)
        self.connection.abort = transport.abort
        if not self.connection.open:  # its place was taken while it shook hands
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limiter.leave(self.connection)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._limiter.received(self.connection, len(data))
        if self.connection.open:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
