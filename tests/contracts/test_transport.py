"""`he_party.transport.Transport`: over HTTP, and in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.identity import Identity
from he_party.pieces import Piece
from he_party.transport import Transport
from he_protocol import documents, frames, paths
from he_protocol.errors import ProblemError
from he_protocol.messages import to_json
from he_protocol.problems import MALFORMED, NOT_FOUND, TOO_LARGE, TRAILING_BYTES, WRONG_SIZE, WRONG_STATE
from he_testing.parties import Authority
from he_testing.problems import expect_problem
from he_testing.transport import Asked, MemoryTransport

ONCE = RetryPolicy(give_up=0.0)


class Line:
    """A transport, what it is answered with, and what it has asked."""

    def __init__(self, transport: Transport, table: MemoryTransport) -> None:
        self.transport = transport
        self.answers = table.answers
        self.asked = table.asked


@pytest.fixture
def identity() -> Identity:
    return Authority().party("client-1", "client")


@pytest.fixture(params=["http", "memory"])
async def line(request: pytest.FixtureRequest, identity: Identity) -> AsyncIterator[Line]:
    table = MemoryTransport(identity)
    if request.param == "memory":
        yield Line(table, table)
        return

    async def answer(asked: web.Request) -> web.Response:
        try:
            body = table._answer(Asked(asked.method, asked.raw_path, await asked.read(), "server"))
        except ProblemError as refusal:
            return web.Response(body=refusal.document(), status=refusal.problem.status)
        return web.Response(body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(app)
    await server.start_server()
    try:
        async with HttpTransport(str(server.make_url("")).rstrip("/"), identity, retry=ONCE) as transport:
            yield Line(transport, table)
    finally:
        await server.close()


async def test_the_answer_comes_back(line: Line) -> None:
    line.answers["GET", "/x?a=1+2"] = b"here"
    answer = await line.transport.request("GET", "/x", query={"a": "1 2"}, audience="server")
    assert (answer.status, answer.body) == (200, b"here")
    assert line.asked == [Asked("GET", "/x?a=1+2", b"", "server")]


async def test_a_body_is_its_pieces_in_order(line: Line, tmp_path: Path) -> None:
    line.answers["PUT", "/x"] = b""
    (tmp_path / "piece").write_bytes(b"file")
    pieces: list[Piece] = [b"one", memoryview(b"two"), tmp_path / "piece"]
    await line.transport.request("PUT", "/x", pieces=pieces, audience="server")
    await line.transport.put_frame("/x", b"head", [b"body"], "server")
    assert [one.body for one in line.asked] == [b"onetwofile", frames.start(b"head") + b"body"]


async def test_a_refusal_is_raised_as_the_servers(line: Line, tmp_path: Path) -> None:
    line.answers["GET", "/x"] = ProblemError(WRONG_STATE, "the round has gone on")
    with expect_problem(WRONG_STATE, "the round has gone on"):
        await line.transport.request("GET", "/x")
    with expect_problem(NOT_FOUND):
        await line.transport.request("GET", "/y")
    with expect_problem(WRONG_STATE):
        await line.transport.download("/x", tmp_path / "file", audience="server", limit=8)
    assert list(tmp_path.iterdir()) == []
    for stream in (
        line.transport.records("/x", audience="server", size=1, count=1),
        line.transport.events("/x", audience="server", limit=8),
    ):
        with expect_problem(WRONG_STATE):
            await anext(stream)


async def test_no_answer_is_longer_than_asked_for(line: Line, tmp_path: Path) -> None:
    line.answers["GET", "/x"] = bytes(9)
    assert (await line.transport.request("GET", "/x", limit=9)).body == bytes(9)
    with expect_problem(TOO_LARGE):
        await line.transport.request("GET", "/x", limit=8)
    with expect_problem(TOO_LARGE):
        await line.transport.download("/x", tmp_path / "file", audience="server", limit=8)
    assert list(tmp_path.iterdir()) == []


async def test_a_download_is_in_its_file(line: Line, tmp_path: Path) -> None:
    line.answers["GET", "/x"] = b"the model"
    answer = await line.transport.download("/x", tmp_path / "new" / "file", audience="server", limit=9)
    assert (tmp_path / "new" / "file").read_bytes() == b"the model"
    assert (answer.body, answer.sha256) == (b"", hashlib.sha256(b"the model").digest())


async def test_documents_are_decoded_strictly(line: Line) -> None:
    listed = documents.PendingOpenings((documents.Waiting(7, "vote"),))
    line.answers["GET", "/x"] = to_json(listed)
    assert await line.transport.document("GET", "/x", documents.PendingOpenings) == listed
    line.answers["GET", "/x"] = b"{"
    with expect_problem(MALFORMED):
        await line.transport.document("GET", "/x", documents.PendingOpenings)


@pytest.mark.parametrize(("body", "problem"), [(b"12345", WRONG_SIZE), (b"", WRONG_SIZE), (b"1234567", TRAILING_BYTES)])
async def test_records_are_so_many_and_so_long(line: Line, body: bytes, problem: object) -> None:
    line.answers["GET", "/x"] = b"123456"
    found = [record async for record in line.transport.records("/x", audience="server", size=2, count=3)]
    assert found == [b"12", b"34", b"56"]
    line.answers["GET", "/x"] = body
    with pytest.raises(ProblemError) as refusal:
        [record async for record in line.transport.records("/x", audience="server", size=2, count=3)]
    assert refusal.value.problem is problem


async def test_events_come_one_by_one_and_are_bounded(line: Line) -> None:
    line.answers["GET", "/x"] = b"event: round\ndata: one\n\n: still here\n\nevent: round\ndata: two\n\n"
    assert [data async for data in line.transport.events("/x", audience="server", limit=99)] == [b"one", b"two"]
    line.answers["GET", "/x"] = b"data: " + bytes(100)
    with expect_problem(TOO_LARGE):
        [data async for data in line.transport.events("/x", audience="server", limit=99)]


async def test_a_task_is_found_by_what_the_authority_signed(line: Line) -> None:
    line.answers["GET", paths.TASKS] = to_json(documents.TaskList(()))
    with expect_problem(NOT_FOUND):
        await line.transport.task("keyboard")
