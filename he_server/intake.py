"""Frames from the network to disk: streamed, hashed and checked on the way, never whole in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from he_protocol import framing
from he_protocol.problems import (
    DATABASE_UNAVAILABLE,
    DIGEST_MISMATCH,
    DISK_FULL,
    MALFORMED,
    TOO_LARGE,
    TRAILING_BYTES,
    WRONG_SIZE,
    Refusal,
)
from he_protocol.residues import ResidueLayout
from he_server.aggregate import check_vector
from he_server.blobs import BlobWriter
from he_server.server import Server

BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Section:
    """One piece of a body: its size in bytes, its SHA-256, and the layout of its residues if it has one."""

    name: str
    size: int
    sha256: bytes
    layout: ResidueLayout | None


class Frame:
    """A frame that is still arriving: first its head, then its body."""

    def __init__(self, request: web.Request, limit: int) -> None:
        self._content = request.content
        self._limit = limit
        if request.content_length is not None and request.content_length > limit:
            raise Refusal(TOO_LARGE, "the frame", expected=f"at most {limit} bytes", got=request.content_length)

    async def head(self) -> bytes:
        """The head's bytes. Raises `malformed` or `too-large`."""
        size = framing.head_size(await self._exactly(framing.PREFIX_BYTES))
        return await self._exactly(size)

    async def token(self) -> str:
        """The head, where it is a compact JWS. Raises `malformed` or `too-large`."""
        try:
            return (await self.head()).decode("ascii")
        except UnicodeDecodeError:
            raise Refusal(MALFORMED, "the head is not a compact JWS") from None

    async def blocks(self, size: int) -> AsyncIterator[bytes]:
        """A body of exactly `size` bytes in blocks. Raises `too-large`, `wrong-size` or `trailing-bytes`."""
        if size > self._limit:
            raise Refusal(TOO_LARGE, "the body", expected=f"at most {self._limit} bytes", got=size)
        got = 0
        async for block in self._arriving():
            got += len(block)
            if got > size:
                raise Refusal(TRAILING_BYTES, "the body is too long", expected=size, got=f"at least {got}")
            yield block
        if got != size:
            raise Refusal(WRONG_SIZE, "the body is too short", expected=size, got=got)

    async def body(self, limit: int) -> bytes:
        """A body of at most `limit` bytes, in memory. Raises `too-large`."""
        held = bytearray()
        async for block in self._arriving():
            held += block
            if len(held) > limit:
                raise Refusal(TOO_LARGE, "the body", expected=f"at most {limit} bytes", got=f"at least {len(held)}")
        return bytes(held)

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._content.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise Refusal(MALFORMED, "the frame ends early", expected=size, got=len(error.partial)) from None

    async def _arriving(self) -> AsyncIterator[bytes]:
        held = bytearray()
        async for chunk in self._content.iter_any():
            held += chunk
            if len(held) >= BLOCK_BYTES:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)


class Intake:
    """Writes a body and hashes its sections while it arrives."""

    def __init__(self, writer: BlobWriter, sections: Sequence[Section]) -> None:
        self._writer = writer
        self._sections = sections
        self._hashes = [hashlib.sha256() for _ in sections]
        self._at = 0
        self._left = sections[0].size if sections else 0

    def feed(self, block: bytes) -> None:
        """Take the next bytes; the caller has checked that they are not too many."""
        self._writer.write(block)
        view = memoryview(block)
        while view:
            while not self._left:
                self._at += 1
                self._left = self._sections[self._at].size
            piece, view = view[: self._left], view[self._left :]
            self._hashes[self._at].update(piece)
            self._left -= len(piece)

    def finish(self) -> None:
        """Check digests and residues, then commit. Raises `digest-mismatch` or `residue-out-of-range`."""
        for section, made in zip(self._sections, self._hashes, strict=True):
            if made.digest() != section.sha256:
                raise Refusal(
                    DIGEST_MISMATCH, f"part {section.name}", expected=section.sha256.hex(), got=made.hexdigest()
                )
        offset = 0
        for section in self._sections:
            if section.layout is not None:
                check_vector(self._writer.reread(offset), section.layout)
            offset += section.size
        self._writer.commit()


@asynccontextmanager
async def recording(server: Server, blob: str) -> AsyncIterator[None]:
    """Around the transaction that makes a row for `blob`: a refusal removes the blob.

    When the database fails, the commit may have happened, and then the bytes belong to a row: they
    stay, and are swept later if they belong to none.
    """
    try:
        yield
    except Refusal as refusal:
        if refusal.problem not in {DATABASE_UNAVAILABLE, DISK_FULL}:
            await server.thread(server.blobs.delete, blob)
        raise


async def receive(server: Server, frame: Frame, blob: str, sections: Sequence[Section]) -> None:
    """Make a body durable under the name `blob`, or leave nothing behind.

    Raises `too-large`, `wrong-size`, `trailing-bytes`, `digest-mismatch`, `residue-out-of-range` or `disk-full`.
    """
    writer = await server.thread(server.blobs.writer, blob)
    try:
        intake = Intake(writer, sections)
        async for block in frame.blocks(sum(section.size for section in sections)):
            server.metrics.received.inc(len(block))
            await server.thread(intake.feed, block)
        await server.thread(intake.finish)
    finally:
        await server.thread(writer.close)
