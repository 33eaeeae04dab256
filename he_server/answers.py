"""Answers: JSON documents, and bytes streamed from disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO

import msgspec
from aiohttp import web

from he_protocol.problems import NOT_FOUND, Refusal
from he_server.server import Server

BLOCK_BYTES = 1024 * 1024
BYTES = "application/octet-stream"
STREAMING = web.RequestKey("streaming", bool)
"""Set on a request whose answer has begun: no problem document can follow any more."""


def answer(document: object, status: int = 200) -> web.Response:
    """A document as JSON."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


async def stream_blob(
    server: Server,
    request: web.Request,
    name: str,
    *,
    offset: int = 0,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """A blob, or `size` bytes of it from `offset` on. Raises `not-found` when it is gone."""
    try:
        file = await server.thread(server.blobs.open, name)
    except FileNotFoundError:
        raise Refusal(NOT_FOUND, "the bytes are not kept any longer") from None
    try:
        left = await server.thread(_seek, file, offset, size)
        response = web.StreamResponse(headers={"Content-Type": BYTES, "Content-Length": str(left), **(headers or {})})
        request[STREAMING] = True
        await response.prepare(request)
        while left:
            block = await server.thread(file.read, min(BLOCK_BYTES, left))
            if not block:
                raise EOFError(f"blob {name} is shorter than it was")
            await response.write(block)
            left -= len(block)
        await response.write_eof()
        return response
    finally:
        await server.thread(file.close)


def _seek(file: BinaryIO, offset: int, size: int | None) -> int:
    """Bytes to send from `offset` on."""
    length = os.fstat(file.fileno()).st_size
    file.seek(offset)
    return length - offset if size is None else min(size, length - offset)
