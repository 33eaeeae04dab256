"""Resumable uploads of updates, by tus 1.0.0.

Creating one takes a signed request. From then on its URL is the capability: 128 random bits, known to its client only,
for bytes that the client has signed anyway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web

from he_protocol import tus
from he_protocol.documents import UpdateReceipt
from he_protocol.errors import ProblemError
from he_protocol.paths import upload_path
from he_server.blobs.store import Upload
from he_server.http.auth import CONNECTION, party_of
from he_server.http.params import hex_id, task_of
from he_server.http.responses import answer
from he_server.rules.bodies import Sender
from he_server.rules.uploads import (
    check_fits,
    check_length,
    check_media_type,
    check_offset,
    check_version,
    claimed_update,
)
from he_server.services.context import ServerContext
from he_server.services.uploads import (
    append_chunk,
    begin_upload,
    complete_upload,
    forget_upload,
    opened_upload,
)
from he_server.store.uploads import UploadRecord


async def options_uploads(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return web.Response(
        status=204,
        headers={
            "Tus-Version": tus.VERSION,
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(server.settings.max_update_bytes),
            "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
        },
    )


async def post_upload(server: ServerContext, request: web.Request) -> web.StreamResponse:
    _check_version(request)
    task = await task_of(server.tasks, request)
    party = party_of(request)
    length = tus.number(request.headers.get("Upload-Length", ""), "Upload-Length")
    check_length(task, length, server.settings.max_update_bytes)
    update_id = claimed_update(request.headers.get("Upload-Metadata", ""))
    upload = await begin_upload(server, task, party, update_id, length)
    return web.Response(status=201, headers={"Location": upload_path(upload.id), **_expiry(upload)})


async def head_upload(server: ServerContext, request: web.Request) -> web.StreamResponse:
    """How far it is. How it ended is GET's to tell; but a client that only asks here gets it accepted, too."""
    async with _opened(server, request) as (upload, file):
        offset = _offset(upload, file)
        if file is not None and offset == upload.length:
            with suppress(ProblemError):
                await complete_upload(server, upload, file)
    headers = {"Upload-Offset": str(offset), "Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    return web.Response(headers=headers | _expiry(upload))


async def get_upload(server: ServerContext, request: web.Request) -> web.StreamResponse:
    async with _opened(server, request) as (upload, file):
        check_offset(upload.length, _offset(upload, file))
        ended = upload if file is None else await complete_upload(server, upload, file)
    return answer(_receipt(ended))


async def sender_of_chunk(server: ServerContext, request: web.Request) -> Sender:
    """A request that knows an upload's URL comes from the client that began it."""
    _check_version(request)
    upload = await server.store.uploads.get(hex_id(request.match_info["upload"], 16, "upload").hex(), server.clock())
    server.connections.prove(request[CONNECTION], upload.party.public)
    return Sender(upload.party.public, upload.length)


async def patch_upload(server: ServerContext, request: web.Request) -> web.StreamResponse:
    check_media_type(request.content_type)
    named = tus.number(request.headers.get("Upload-Offset", ""), "Upload-Offset")
    checksum = request.headers.get("Upload-Checksum")
    wanted = None if checksum is None else tus.parse_checksum(checksum)
    async with _opened(server, request) as (upload, file):
        check_offset(_offset(upload, file), named)
        check_fits(upload.length, named, request.content_length or 0)
        ended = upload
        if file is not None:
            await append_chunk(server.threads, upload, file, request.content.iter_any(), wanted)
            if file.size == upload.length:
                ended = await complete_upload(server, upload, file)
        if ended.ended:
            _receipt(ended)
        offset = _offset(ended, file)
    return web.Response(status=204, headers={"Upload-Offset": str(offset), **_expiry(upload)})


async def delete_upload(server: ServerContext, request: web.Request) -> web.StreamResponse:
    async with _opened(server, request) as (upload, _):
        await forget_upload(server, upload)
    return web.Response(status=204)


async def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Say which version of tus is spoken, also in refusals: for the application's `on_response_prepare`."""
    if "/uploads" not in request.path:
        return
    response.headers["Tus-Resumable"] = tus.VERSION
    if response.status == HTTPStatus.PRECONDITION_FAILED:
        response.headers["Tus-Version"] = tus.VERSION


@asynccontextmanager
async def _opened(server: ServerContext, request: web.Request) -> AsyncIterator[tuple[UploadRecord, Upload | None]]:
    """The upload that the path names; its client has proved itself by naming it. Raises what `opened_upload` raises,
    and `tus-version`."""
    _check_version(request)
    async with opened_upload(server, hex_id(request.match_info["upload"], 16, "upload").hex()) as (upload, file):
        server.connections.prove(request[CONNECTION], upload.party.public)
        yield upload, file


def _receipt(ended: UploadRecord) -> UpdateReceipt:
    """The receipt of an upload that has ended. Raises the refusal that ended it instead."""
    if ended.problem:
        raise ProblemError.from_document(ended.problem.encode(), 0)
    return UpdateReceipt(ended.receipt, ended.round)


def _offset(upload: UploadRecord, file: Upload | None) -> int:
    return upload.length if file is None else file.size


def _check_version(request: web.Request) -> None:
    check_version(request.headers.get("Tus-Resumable", ""))


def _expiry(upload: UploadRecord) -> dict[str, str]:
    return {"Upload-Expires": formatdate(upload.expires, usegmt=True)}
