"""`he_party.board.Board`: on a server, and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from he_party.board import Board, ServerBoard
from he_party.http_transport import HttpTransport
from he_party.identity import Identity
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Reveal
from he_protocol.problems import CEREMONY_CONFLICT, NOT_FOUND, TOO_LARGE
from he_testing.board import MemoryBoard
from he_testing.problems import expect_problem
from tests.server.world import World


@pytest.fixture(params=["server", "memory"])
async def board(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Board]:
    """The board, as holder-1 has it."""
    if request.param == "memory":
        yield MemoryBoard()
        return
    holder = world.holders[1]
    identity = Identity(holder.name, holder.key, holder.credential, world.authority.public)
    url = f"http://{world.http.host}:{world.http.port}"
    async with HttpTransport(url, identity, clock=world.clock) as transport:
        yield ServerBoard(transport, world.task)


def _message(world: World, transcript: bytes = bytes(32)) -> str:
    key: SigningKey = world.holders[1].key
    return key.sign(Reveal(world.task.hash, 1, "holder-1", transcript, ()))


async def test_what_was_posted_is_there(board: Board, world: World) -> None:
    assert await board.posts("reveal") == {}
    await board.post("reveal", "holder-1", _message(world), b"the body")
    assert await board.posts("reveal") == {"holder-1": _message(world)}
    assert await board.posts("commitment") == {}
    assert await board.body("reveal", "holder-1", 8) == b"the body"


async def test_a_body_is_no_longer_than_the_reader_says(board: Board, world: World) -> None:
    await board.post("reveal", "holder-1", _message(world), b"the body")
    with expect_problem(TOO_LARGE):
        await board.body("reveal", "holder-1", 7)


async def test_the_same_post_again_changes_nothing(board: Board, world: World) -> None:
    for _ in range(2):
        await board.post("reveal", "holder-1", _message(world), b"the body")
    assert await board.posts("reveal") == {"holder-1": _message(world)}


async def test_nothing_replaces_a_post(board: Board, world: World) -> None:
    await board.post("reveal", "holder-1", _message(world), b"the body")
    with expect_problem(CEREMONY_CONFLICT):
        await board.post("reveal", "holder-1", _message(world, b"\1" * 32))
    assert await board.body("reveal", "holder-1", 8) == b"the body"


async def test_what_nobody_posted_is_not_there(board: Board) -> None:
    with expect_problem(NOT_FOUND):
        await board.body("reveal", "holder-2", 8)
