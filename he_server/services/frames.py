"""Frames that are still arriving, from the network or from a file: never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

from he_protocol import frames
from he_protocol.errors import ProblemError
from he_protocol.problems import MALFORMED, TOO_LARGE, TRAILING_BYTES, WRONG_SIZE


class Source(Protocol):
    """Where a frame's bytes come from: a request's body (aiohttp's StreamReader), or a file."""

    async def readexactly(self, n: int) -> bytes:
        """The next `n` bytes. Raises asyncio.IncompleteReadError."""

    def iter_any(self) -> AsyncIterable[bytes]:
        """Whatever is left, in pieces of any size."""


class Frame:
    """A frame that is still arriving: first its head, then its body."""

    def __init__(self, source: Source, limit: int, size: int | None) -> None:
        """`limit` in bytes; `size` where the whole frame's is known before. Raises `too-large`."""
        self._content = source
        self._limit = limit
        if size is not None and size > limit:
            raise ProblemError(TOO_LARGE, "the frame", expected=f"at most {limit} bytes", got=size)

    async def head(self) -> bytes:
        """The head's bytes. Raises `malformed`, `unknown-protocol` or `too-large`."""
        size = frames.head_size(await self.exactly(frames.PREFIX_BYTES))
        return await self.exactly(size)

    async def token(self) -> str:
        """The head, where it is a compact JWS. Raises what `head` does."""
        try:
            return (await self.head()).decode("ascii")
        except UnicodeDecodeError:
            raise ProblemError(MALFORMED, "the head is not a compact JWS") from None

    async def blocks(self, size: int) -> AsyncIterator[bytes]:
        """A body of exactly `size` bytes as it arrives. Raises `too-large`, `wrong-size` or `trailing-bytes`."""
        if size > self._limit:
            raise ProblemError(TOO_LARGE, "the body", expected=f"at most {self._limit} bytes", got=size)
        got = 0
        async for block in self._content.iter_any():
            got += len(block)
            if got > size:
                raise ProblemError(TRAILING_BYTES, "the body is too long", expected=size, got=f"at least {got}")
            yield block
        if got != size:
            raise ProblemError(WRONG_SIZE, "the body is too short", expected=size, got=got)

    async def whole(self, size: int) -> bytearray:
        """The same in memory, in one piece: a list of those that came could be far larger than they are."""
        held = bytearray()
        async for block in self.blocks(size):
            held += block
        return held

    async def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """A body of at most `limit` bytes as it arrives. Raises `too-large`."""
        got = 0
        async for block in self._content.iter_any():
            got += len(block)
            if got > limit:
                raise ProblemError(TOO_LARGE, "the body", expected=f"at most {limit} bytes", got=f"at least {got}")
            yield block

    async def body(self, limit: int) -> bytes:
        """The same in memory."""
        held = bytearray()
        async for block in self.pieces(limit):
            held += block
        return bytes(held)

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes. Raises `malformed`."""
        try:
            return await self._content.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ProblemError(MALFORMED, "the frame ends early", expected=size, got=len(error.partial)) from None
