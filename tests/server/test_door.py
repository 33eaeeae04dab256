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
from he_server.services import door as door_module
from he_server.services.door import Connection, Door, Places

from .world import Person, World

PLACES = Places(in_all=4, address=2, party=2)


def _enter(door: Door, address: str, gone: list[str], name: str = "") -> Connection:
    connection = Connection(address)
    connection.abort = lambda: gone.append(name)
    door.enter(connection)
    return connection


def test_at_one_address_the_stranger_that_is_idle_longest_makes_room() -> None:
    door, gone = Door(PLACES), list[str]()
    first, second = (_enter(door, "a", gone, name) for name in ("first", "second"))
    _enter(door, "b", gone)
    first.busy = True
    _enter(door, "a", gone, "third")
    assert gone == ["second"]
    assert first.open
    assert not second.open
    assert len(door) == 3


def test_who_has_proved_who_it_is_leaves_its_place_to_the_address() -> None:
    door, gone = Door(PLACES), list[str]()
    for party in (b"1", b"2"):
        door.prove(_enter(door, "a", gone), party)
    for _ in range(2):
        _enter(door, "a", gone)
    assert gone == []


def test_of_all_connections_a_stranger_makes_room_and_no_party_does() -> None:
    door, gone = Door(PLACES), list[str]()
    for party in (b"1", b"2", b"3"):
        door.prove(_enter(door, party.decode(), gone, "party"), party)
    _enter(door, "x", gone, "stranger")
    last = _enter(door, "y", gone, "last")
    assert gone == ["stranger"]
    door.prove(last, b"4")
    with pytest.raises(ProblemError) as caught:
        _enter(door, "z", gone)
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS


def test_where_all_are_busy_the_newcomer_is_refused() -> None:
    door, gone = Door(PLACES), list[str]()
    for _ in range(PLACES.address):
        _enter(door, "a", gone).busy = True
    with pytest.raises(ProblemError) as caught:
        _enter(door, "a", gone)
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS
    assert gone == []


def test_one_party_holds_so_many_and_gives_them_back() -> None:
    door, gone = Door(Places(100, 100, 2)), list[str]()
    held = [_enter(door, "a", gone) for _ in range(3)]
    for connection in held[:2]:
        door.prove(connection, b"1")
    with pytest.raises(ProblemError) as caught:
        door.prove(held[2], b"1")
    assert caught.value.problem == problems.TOO_MANY_CONNECTIONS
    door.leave(held[0])
    door.prove(held[2], b"1")
    door.doubt(held[2])
    assert held[2].stranger
    for connection in held:
        door.leave(connection)
    assert len(door) == 0
    assert (door._addresses, door._parties, door._strangers) == ({}, {}, {})


def test_of_strangers_that_hold_too_much_the_greediest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "HELD_BYTES", 100)
    door, gone = Door(Places(9, 9, 9)), list[str]()
    greedy, modest, known = (_enter(door, "a", gone, name) for name in ("greedy", "modest", "known"))
    door.prove(known, b"1")
    door.received(known, 1000)
    door.received(modest, 60)
    door.consumed(modest, 60)
    door.received(modest, 20)
    door.received(greedy, 70)
    assert gone == []
    door.received(modest, 20)
    assert gone == ["greedy"]


def test_one_stranger_that_holds_too_much_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "ONE_HOLDS", 100)
    door, gone = Door(Places(9, 9, 9)), list[str]()
    greedy, known = (_enter(door, "a", gone, name) for name in ("greedy", "known"))
    door.prove(known, b"1")
    door.received(known, 1000)
    door.received(greedy, 100)
    assert gone == []
    door.consumed(greedy, 50)
    door.received(greedy, 51)
    assert gone == ["greedy"]
    assert len(door) == 1


async def test_a_connection_of_many_requests_holds_nothing_between_them(world: World) -> None:
    for _ in range(20):
        assert (await world.call(None, "GET", "/healthz")).status == 200
    (connection,) = world.server.door._all
    assert connection.held == 0


async def _status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(20):
        return int((await reader.readline()).split()[1])


async def test_a_stranger_that_only_holds_connections_keeps_nobody_out(world: World) -> None:
    world.server.door = door = _small_door(world, Places(100, 3, 100))
    async with AsyncExitStack() as stack:
        idle = [await _connected(world, stack) for _ in range(5)]
        assert (await world.call(None, "GET", "/healthz")).status == 200
        async with asyncio.timeout(20):
            assert await idle[0][0].read() == b""  # the oldest had to go
        assert len(door) <= 3


async def test_refused_connections_are_told_why(world: World) -> None:
    _small_door(world, Places(1, 1, 1))
    async with AsyncExitStack() as stack:
        reader, writer = await _connected(world, stack)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await _status(reader) == 200
        (connection,) = world.server.door._all
        connection.busy = True
        refused, _ = await _connected(world, stack)
        assert await _status(refused) == problems.TOO_MANY_CONNECTIONS.status
        assert b"too-many-connections" in await refused.read()


async def test_one_party_is_refused_another_connection(world: World) -> None:
    _small_door(world, Places(100, 100, 2))
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
    listener = make_listener(runner, world.server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    port = await listener.start("127.0.0.1", 0)
    before = len(world.server.door)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        await _until(lambda: len(world.server.door) == before + 1)
        stranger.sendall(b"no TLS at all\r\n\r\n")
        await _until(lambda: len(world.server.door) == before)
    await listener.stop()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def _small_door(world: World, places: Places) -> Door:
    """The server's own door with fewer places; nobody has come through it yet."""
    door = world.server.door
    door._places = places
    for connection in list(door._all):
        door.leave(connection)
        connection.abort()
    return door


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
