"""Answers: JSON documents, and bytes streamed from disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import msgspec
from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND
from he_server.blobs.store import BlobStore
from he_server.services.context import ServerContext

BLOCK_BYTES = 1024 * 1024
BYTES = "application/octet-stream"
STREAMING = web.RequestKey("streaming", web.StreamResponse)
"""The answer of a request, once it has begun: no problem document can follow any more."""


def answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A document as JSON."""
    body = msgspec.json.encode(document)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


@dataclass(frozen=True)
class Piece:
    """`size` bytes of a blob from `offset` on."""

    name: str
    offset: int
    size: int


async def stream_blob(
    server: ServerContext, request: web.Request, name: str, *, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """A whole blob. Raises `not-found` when it is gone."""
    try:
        size = await server.threads.run(server.blobs.size, name)
    except FileNotFoundError:
        raise _gone() from None
    return await stream_pieces(server, request, [Piece(name, 0, size)], headers=headers)


async def stream_pieces(
    server: ServerContext,
    request: web.Request,
    pieces: Sequence[Piece],
    *,
    headers: Mapping[str, str] | None = None,
    zeros: bool = False,
) -> web.StreamResponse:
    """Pieces of blobs, one after the other. Raises `not-found` when the first is gone.

    With `zeros`, these stand for bytes that are gone: one lost piece keeps nobody from the others, and whoever knows
    its hash sees what happened.
    """
    length = str(sum(piece.size for piece in pieces))
    response = web.StreamResponse(headers={"Content-Type": BYTES, "Content-Length": length, **(headers or {})})
    blocks = _blocks(server.blobs, pieces, zeros=zeros)
    block = await server.threads.run(next, blocks, b"")
    request[STREAMING] = response
    await response.prepare(request)
    while block:
        await response.write(block)
        block = await server.threads.run(next, blocks, b"")
    await response.write_eof()
    return response


def _blocks(blobs: BlobStore, pieces: Sequence[Piece], *, zeros: bool) -> Iterator[bytes]:
    """The pieces' bytes, about a block at a time: small pieces share one. Raises `not-found` when the first is gone,
    EOFError when another is, or is shorter than it was."""
    gathered = bytearray()
    for number, piece in enumerate(pieces):
        try:
            file = blobs.open(piece.name)
        except FileNotFoundError:
            if zeros:
                file = BytesIO()
            elif number:
                raise EOFError(f"blob {piece.name} went while it was sent") from None
            else:
                raise _gone() from None
        with file:
            file.seek(piece.offset)
            left = piece.size
            while left:
                size = min(BLOCK_BYTES, left)
                block = file.read(size) or (bytes(size) if zeros else b"")
                if not block:
                    raise EOFError(f"blob {piece.name} is shorter than it was")
                gathered += block
                left -= len(block)
                if len(gathered) >= BLOCK_BYTES:
                    yield bytes(gathered)
                    gathered.clear()
    yield bytes(gathered)


def _gone() -> ProblemError:
    return ProblemError(NOT_FOUND, "the bytes are not kept any longer")
