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


class Health(Document, frozen=True):
    """Answer of the probes."""

    status: str


async def get_health(_server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return answer(Health("alive"))


async def get_ready(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    if server.draining:
        raise ProblemError(SHUTTING_DOWN, "requests in flight are being finished")
    await server.store.database.ping()
    await server.admission.check_disk()
    await server.probe()
    if not server.working():
        raise ProblemError(INTERNAL, "the worker has stopped")
    return answer(Health("ready"))


async def get_metrics(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=await server.exposition(), headers={"Content-Type": EXPOSITION})


async def get_audit_head(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    seq, digest = await server.store.audit.head()
    head = AuditHead(server.key.name, seq, digest, int(server.clock()))
    return answer(AuditStatus(await server.thread(server.key.signing.sign, head)))


async def get_openapi(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return answer(msgspec.Raw(server.openapi))
