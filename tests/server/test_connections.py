"""Connections: how many there may be, who has to go, and what strangers may send unasked."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import structlog
from aiohttp import web

from he_protocol import paths, problems
from he_protocol.errors import ProblemError
from he_protocol.identity.requests import prove_request
from he_server.http.logging import http_log
from he_server.http.process import make_listener
from he_server.services import connections as connections_module
from he_server.services.connections import Connection, ConnectionLimiter, ConnectionLimits

from .world import Person, World

LIMITS = ConnectionLimits(in_all=4, address=2, party=2)


def _enter(limiter: ConnectionLimiter, address: str, gone: list[str], name: str = "") -> Connection:
    connection = Connection(address)
    connection.abort = lambda: gone.append(name)
    limiter.enter(connection)
    return connection


def test_at_one_address_the_stranger_that_is_idle_longest_makes_room() -> None:
    limiter, gone = ConnectionLimiter(LIMITS), list[str]()
    first, second = (_enter(limiter, "a", gone, name) for name in ("first", "second"))
    _enter(limiter, "b", gone)
    first.busy = True
    _enter(limiter, "a", gone, "third")
    assert gone == ["second"]
    assert first.open
    assert not second.open
    assert len(limiter) == 3


def test_who_has_proved_who_it_is_leaves_its_place_to_the_address() -> None:
    limiter, gone = ConnectionLimiter(LIMITS), list[str]()
    for party in (b"1", b"2"):
        limiter.prove(_enter(limiter, "a", gone), party)
    for _ in range(2):
        _enter(limiter, "a", gone)
    assert gone == []


def test_of_all_connections_a_stranger_makes_room_and_no_party_does() -> None:
    limiter, gone = ConnectionLimiter(LIMITS), list[str]()
    for party in (b"1", b"2", b"3"):
        limiter.prove(_enter(limiter, party.decode(), gone, "party"), party)
    _enter(limiter, "x", gone, "stranger")
    last = _enter(limiter, "y", gone, "last")
    assert gone == ["stranger"]
    limiter.prove(last, b"4")
    with pytest.raises(ProblemError) as caught:
        _enter(limiter, "z", gone)
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS


def test_where_all_are_busy_the_newcomer_is_refused() -> None:
    limiter, gone = ConnectionLimiter(LIMITS), list[str]()
    for _ in range(LIMITS.address):
        _enter(limiter, "a", gone).busy = True
    with pytest.raises(ProblemError) as caught:
        _enter(limiter, "a", gone)
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS
    assert gone == []


def test_one_party_holds_so_many_and_gives_them_back() -> None:
    limiter, gone = ConnectionLimiter(ConnectionLimits(100, 100, 2)), list[str]()
    held = [_enter(limiter, "a", gone) for _ in range(3)]
    for connection in held[:2]:
        limiter.prove(connection, b"1")
    with pytest.raises(ProblemError) as caught:
        limiter.prove(held[2], b"1")
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS
    limiter.leave(held[0])
    limiter.prove(held[2], b"1")
    limiter.doubt(held[2])
    assert held[2].stranger
    for connection in held:
        limiter.leave(connection)
    assert len(limiter) == 0
    assert (limiter._addresses, limiter._parties, limiter._strangers) == ({}, {}, {})


def test_of_strangers_that_hold_too_much_the_greediest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "HELD_BYTES", 100)
    limiter, gone = ConnectionLimiter(ConnectionLimits(9, 9, 9)), list[str]()
    greedy, modest, known = (_enter(limiter, "a", gone, name) for name in ("greedy", "modest", "known"))
    limiter.prove(known, b"1")
    limiter.received(known, 1000)
    limiter.received(modest, 60)
    limiter.consumed(modest, 60)
    limiter.received(modest, 20)
    limiter.received(greedy, 70)
    assert gone == []
    limiter.received(modest, 20)
    assert gone == ["greedy"]


def test_one_stranger_that_holds_too_much_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "ONE_HOLDS", 100)
    limiter, gone = ConnectionLimiter(ConnectionLimits(9, 9, 9)), list[str]()
    greedy, known = (_enter(limiter, "a", gone, name) for name in ("greedy", "known"))
    limiter.prove(known, b"1")
    limiter.received(known, 1000)
    limiter.received(greedy, 100)
    assert gone == []
    limiter.consumed(greedy, 50)
    limiter.received(greedy, 51)
    assert gone == ["greedy"]
    assert len(limiter) == 1


async def test_a_connection_of_many_requests_holds_nothing_between_them(world: World) -> None:
    for _ in range(20):
        assert (await world.call(None, "GET", "/healthz")).status == 200
    (connection,) = world.server.connections._all
    assert connection.held == 0


async def _status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(20):
        return int((await reader.readline()).split()[1])


async def test_a_stranger_that_only_holds_connections_keeps_nobody_out(world: World) -> None:
    world.server.connections = limiter = _few_connections(world, ConnectionLimits(100, 3, 100))
    async with AsyncExitStack() as stack:
        idle = [await _connected(world, stack) for _ in range(5)]
        assert (await world.call(None, "GET", "/healthz")).status == 200
        async with asyncio.timeout(20):
            assert await idle[0][0].read() == b""  # the oldest had to go
        assert len(limiter) <= 3


async def test_refused_connections_are_told_why(world: World) -> None:
    _few_connections(world, ConnectionLimits(1, 1, 1))
    async with AsyncExitStack() as stack:
        reader, writer = await _connected(world, stack)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await _status(reader) == 200
        (connection,) = world.server.connections._all
        connection.busy = True
        refused, _ = await _connected(world, stack)
        assert await _status(refused) == problems.TOO_MANY_CONNECTIONS.status
        assert b"too-many-connections" in await refused.read()


async def test_one_party_is_refused_another_connection(world: World) -> None:
    _few_connections(world, ConnectionLimits(100, 100, 2))
    ada = world.person("ada", "client")
    async with AsyncExitStack() as stack:
        statuses = []
        for number in range(3):
            reader, writer = await _connected(world, stack)
            writer.write(_signed(world, ada, str(number)))
            statuses.append(await _status(reader))
        assert statuses == [200, 200, problems.TOO_MANY_CONNECTIONS.status]


async def test_what_is_no_http_leaves_one_line(
    world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
    assert http_log().handlers
    sent = (
        b"\x16\x03\x01\x02\0nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -4\r\n\r\n",
        b"GET /" + b"a" * 9000,
    )
    try:
        capsys.readouterr()
        with caplog.at_level(logging.DEBUG):
            for bytes_sent in sent:
                async with AsyncExitStack() as stack:
                    reader, writer = await _connected(world, stack)
                    writer.write(bytes_sent)
                    assert await _status(reader) == 400
        said = capsys.readouterr().out.splitlines()
    finally:
        structlog.reset_defaults()
    assert len(said) == len(sent)
    assert all(json.loads(line)["event"] == "rejected before it was a request" for line in said)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_connection_counts_while_it_shakes_hands(world: World) -> None:
    """A failed handshake gives the place back."""
    runner = world.http.server.runner
    assert isinstance(runner, web.AppRunner)
    listener = make_listener(runner, world.server.connections, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    port = await listener.start("127.0.0.1", 0)
    before = len(world.server.connections)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        await _until(lambda: len(world.server.connections) == before + 1)
        stranger.sendall(b"no TLS at all\r\n\r\n")
        await _until(lambda: len(world.server.connections) == before)
    await listener.stop()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def _few_connections(world: World, limits: ConnectionLimits) -> ConnectionLimiter:
    """The server's own limiter with lower limits; it has counted nobody yet."""
    limiter = world.server.connections
    limiter._limits = limits
    for connection in list(limiter._all):
        limiter.leave(connection)
        connection.abort()
    return limiter


def _signed(world: World, who: Person, jti: str) -> bytes:
    path = f"{paths.task_path(world.task.id)}/rounds"
    proof = prove_request(
        who.key, who.credential, audience="aggregator", method="GET", path=path, now=world.clock(), jti=jti
    )
    lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in proof.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _connected(world: World, stack: AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert world.http.port is not None
    reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
    stack.callback(writer.close)
    return reader, writer
