"""Probes, metrics, and the server's own description."""

from __future__ import annotations

import msgspec
from aiohttp import web

from he_protocol.documents import AuditStatus, Document
from he_protocol.errors import ProblemError
from he_protocol.messages import AuditHead
from he_protocol.problems import INTERNAL, SHUTTING_DOWN
from he_server.http.responses import answer
from he_server.services.context import ServerContext

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
OPENAPI = web.AppKey("openapi", bytes)
"""The application's description of itself."""


class Health(Document, frozen=True):
    """Answer of the probes."""

    status: str


async def get_health(_server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return answer(Health("alive"))


async def get_ready(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    if server.drain.stopping.is_set():
        raise ProblemError(SHUTTING_DOWN, "requests in flight are being finished")
    await server.store.database.ping()
    await server.admission.check_disk()
    await server.probe()
    if server.worker is not None and server.worker.done():
        raise ProblemError(INTERNAL, "the worker has stopped")
    return answer(Health("ready"))


async def get_metrics(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=await server.exposition(), headers={"Content-Type": EXPOSITION})


async def get_audit_head(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    seq, digest = await server.store.audit.head()
    head = AuditHead(server.keys.own.name, seq, digest, int(server.clock()))
    return answer(AuditStatus(await server.threads.run(server.keys.own.signing.sign, head)))


async def get_openapi(_server: ServerContext, request: web.Request) -> web.StreamResponse:
    return answer(msgspec.Raw(request.app[OPENAPI]))
