"""Writes bodies from the network to disk: streamed, hashed and checked on the way, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from he_protocol.arithmetic.residues import ResidueLayout, check
from he_protocol.errors import ProblemError
from he_protocol.problems import DATABASE_UNAVAILABLE, DIGEST_MISMATCH, DISK_FULL
from he_server.blobs.store import BlobStore, BlobWriter
from he_server.blobs.vectors import check_vector
from he_server.services.context import ServerContext
from he_server.services.frames import Frame

BLOCK_BYTES = 256 * 1024
"""Bytes that are handed to a thread at once; each upload under way holds about this much in memory."""


@dataclass(frozen=True)
class BodySection:
    """One piece of a body: the blob that keeps it (after the blob's earlier sections), its size in bytes,
    its SHA-256, and the layout of its residues if it has one."""

    name: str
    blob: str
    size: int
    sha256: bytes
    layout: ResidueLayout | None


async def gathered(blocks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `BLOCK_BYTES` or more; the last may be smaller."""
    held = bytearray()
    async for block in blocks:
        held += block
        if len(held) >= BLOCK_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


class BodyWriter:
    """Writes a body's sections into their blobs and hashes them while they arrive."""

    def __init__(self, blobs: BlobStore, sections: Sequence[BodySection]) -> None:
        self._blobs = blobs
        self._sections = sections
        self._hashes = [hashlib.sha256() for _ in sections]
        self._at = 0
        self._left = sections[0].size if sections else 0
        self._writers: dict[str, BlobWriter] = {}
        self._opened = ExitStack()

    def feed(self, block: bytes) -> None:
        """Take the next bytes; the caller has checked that they are not too many."""
        if not self._writers:
            for name in dict.fromkeys(section.blob for section in self._sections):
                self._writers[name] = self._opened.enter_context(self._blobs.writer())
        view = memoryview(block)
        while view:
            while not self._left:
                self._at += 1
                self._left = self._sections[self._at].size
            piece, view = view[: self._left], view[self._left :]
            self._writers[self._sections[self._at].blob].write(piece)
            self._hashes[self._at].update(piece)
            self._left -= len(piece)

    def finish(self, block: bytes) -> None:
        """Take the last bytes, check digests and residues, then commit all blobs.

        Raises `digest-mismatch` or `residue-out-of-range`.
        """
        self.feed(block)
        for section, made in zip(self._sections, self._hashes, strict=True):
            _check_digest(section, made.digest())
        offsets = dict.fromkeys(self._writers, 0)
        for section in self._sections:
            if section.layout is not None:
                check_vector(self._writers[section.blob].reread(offsets[section.blob]), section.layout)
            offsets[section.blob] += section.size
        for name, writer in self._writers.items():
            writer.commit(name)
        self.close()

    def close(self) -> None:
        """Release all files; what was not committed is removed."""
        self._opened.close()


def check_body(body: bytearray, sections: Sequence[BodySection]) -> dict[str, memoryview]:
    """A whole body that is held in memory, checked and cut into its sections: by the blobs that will keep them.

    Raises `digest-mismatch` or `residue-out-of-range`.
    """
    found, rest = {}, memoryview(body)
    for section in sections:
        piece, rest = rest[: section.size], rest[section.size :]
        _check_digest(section, hashlib.sha256(piece).digest())
        if section.layout is not None:
            check(piece, section.layout)
        found[section.blob] = piece
    return found


def _check_digest(section: BodySection, made: bytes) -> None:
    if made != section.sha256:
        raise ProblemError(DIGEST_MISMATCH, f"section {section.name}", expected=section.sha256.hex(), got=made.hex())


@asynccontextmanager
async def keep_or_delete(server: ServerContext, *blobs: str) -> AsyncIterator[None]:
    """Around the transaction that makes a row for `blobs`: a refusal deletes them.

    When the database fails, the commit may have happened all the same, so they stay; garbage collection deletes them
    later if no row refers to them.
    """
    try:
        yield
    except ProblemError as refusal:
        if refusal.problem not in {DATABASE_UNAVAILABLE, DISK_FULL}:
            await delete_blobs(server, blobs)
        raise


async def delete_blobs(server: ServerContext, blobs: Iterable[str]) -> None:
    """Delete blobs that no row refers to."""
    await server.threads.run(delete_all, server.blobs, tuple(blobs))


def delete_all(blobs: BlobStore, names: Iterable[str]) -> None:
    """Delete several blobs in one hop to a thread."""
    for name in names:
        blobs.delete(name)


async def keep_body(server: ServerContext, frame: Frame, name: str, limit: int) -> int:
    """Make a body of at most `limit` bytes durable as it arrives, or leave nothing behind; its size.

    Raises `too-large` or `disk-full`.
    """
    writer, size = await server.threads.run(server.blobs.writer), 0
    try:
        async for block in gathered(frame.pieces(limit)):
            server.metrics.received.inc(len(block))
            size += len(block)
            await server.threads.run(writer.write, block)
        await server.threads.run(writer.commit, name)
    finally:
        await server.threads.run(writer.close)
    return size


async def receive(server: ServerContext, frame: Frame, sections: Sequence[BodySection]) -> None:
    """Make a body durable in the blobs that its sections name, or leave nothing behind.

    Raises `too-large`, `wrong-size`, `trailing-bytes`, `digest-mismatch`, `residue-out-of-range` or `disk-full`.
    """
    intake, last = BodyWriter(server.blobs, sections), b""
    try:
        async for block in gathered(frame.blocks(sum(section.size for section in sections))):
            server.metrics.received.inc(len(block))
            if last:
                await server.threads.run(intake.feed, last)
            last = block
        await server.threads.run(intake.finish, last)
    except BaseException as error:
        await server.threads.run(intake.close)
        if isinstance(error, ProblemError):  # one blob may be committed before the disk is full
            await delete_blobs(server, {section.blob for section in sections})
        raise
