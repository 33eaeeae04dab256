"""Answers: JSON documents, and bytes streamed from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import msgspec
from aiohttp import web

from he_protocol.problems import NOT_FOUND, Refusal
from he_server.server import Server

BLOCK_BYTES = 1024 * 1024
BYTES = "application/octet-stream"
STREAMING = web.RequestKey("streaming", web.StreamResponse)
"""The answer of a request, once it has begun: no problem document can follow any more."""


def answer(document: object, status: int = 200) -> web.Response:
    """A document as JSON."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


@dataclass(frozen=True)
class Piece:
    """`size` bytes of a blob from `offset` on."""

    name: str
    offset: int
    size: int


async def stream_blob(
    server: Server, request: web.Request, name: str, *, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """A whole blob. Raises `not-found` when it is gone."""
    try:
        size = await server.thread(server.blobs.size, name)
    except FileNotFoundError:
        raise _gone() from None
    return await stream_pieces(server, request, [Piece(name, 0, size)], headers=headers)


async def stream_pieces(
    server: Server,
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
    for number, piece in enumerate(pieces):
        try:
            file = await server.thread(server.blobs.open, piece.name)
        except FileNotFoundError:
            if zeros:
                file = BytesIO()
            elif number:
                raise EOFError(f"blob {piece.name} went while it was sent") from None
            else:
                raise _gone() from None
        if not number:
            request[STREAMING] = response
            await response.prepare(request)
        try:
            await _send(server, response, file, piece, zeros=zeros)
        finally:
            await server.thread(file.close)
    await response.write_eof()
    return response


async def _send(server: Server, response: web.StreamResponse, file: BinaryIO, piece: Piece, *, zeros: bool) -> None:
    await server.thread(file.seek, piece.offset)
    left = piece.size
    while left:
        block = await server.thread(file.read, min(BLOCK_BYTES, left))
        if not block and zeros:
            block = bytes(min(BLOCK_BYTES, left))
        elif not block:
            raise EOFError(f"blob {piece.name} is shorter than it was")
        await response.write(block)
        left -= len(block)


def _gone() -> Refusal:
    return Refusal(NOT_FOUND, "the bytes are not kept any longer")
