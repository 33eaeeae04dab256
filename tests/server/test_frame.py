"""Sizes of a frame that arrives: each bound alone, without the ones that stand behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from he_protocol.problems import TOO_LARGE, TRAILING_BYTES
from he_server.services.frames import Frame
from he_testing.problems import expect_problem


class Arriving(asyncio.StreamReader):
    """What the server reads from: aiohttp's reader has `iter_any`, asyncio's has not."""

    async def iter_any(self) -> AsyncIterator[bytes]:
        while block := await self.read(1 << 16):
            yield block


def sending(data: bytes) -> Arriving:
    reader = Arriving()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_a_declared_size_above_the_limit_is_refused_before_a_byte_is_read() -> None:
    Frame(sending(b""), 10, 10)
    with expect_problem(TOO_LARGE, "the frame"):
        Frame(sending(b""), 10, 11)


@pytest.mark.parametrize("size", [11, 1 << 40])
async def test_a_body_above_the_limit_is_refused_also_where_nothing_was_declared(size: int) -> None:
    with expect_problem(TOO_LARGE, "the body"):
        await Frame(sending(b""), 10, None).whole(size)
    with expect_problem(TOO_LARGE, "the body"):
        await anext(Frame(sending(b""), 10, None).blocks(size))


async def test_a_body_ends_where_it_was_said_to_end() -> None:
    assert await Frame(sending(bytes(10)), 10, None).whole(10) == bytes(10)
    assert [block async for block in Frame(sending(bytes(10)), 10, None).blocks(10)] == [bytes(10)]
    with expect_problem(TRAILING_BYTES):
        await Frame(sending(bytes(11)), 10, None).whole(10)
    with expect_problem(TRAILING_BYTES):
        await anext(Frame(sending(bytes(11)), 10, None).blocks(10))
