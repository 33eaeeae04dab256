"""The aiohttp application: routes, middleware, and the worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import cache

from aiohttp import web
from aiohttp.typedefs import Handler

import he_party
from he_protocol.headers import METHOD_OVERRIDE, OVERRIDABLE
from he_server.http import openapi
from he_server.http.auth import CONNECTION, METHOD, authenticate
from he_server.http.handlers import health, uploads
from he_server.http.middleware import observe
from he_server.http.pacing import minimum_rate
from he_server.http.params import check_empty
from he_server.http.routes import ROUTES, Route
from he_server.jobs.worker import Worker
from he_server.rules.bodies import check_declared
from he_server.rules.requests import effective_method
from he_server.services.context import ServerContext
from he_server.services.strangers import PACE_RATE, PACE_SECONDS

SERVER = web.AppKey("server", ServerContext)


def make_app(server: ServerContext, *, work: bool = True) -> web.Application:
    """The application; with `work` its worker runs while the application does."""
    app = web.Application(middlewares=[observe(server)])
    app[SERVER] = server
    app[health.OPENAPI] = _document()
    paths: dict[str, dict[str, Handler]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _guarded(server, route)
    for path, handlers in paths.items():
        overriding = {"POST"} if OVERRIDABLE & handlers.keys() else set()
        for method in handlers.keys() | overriding:
            app.router.add_route(method, path, _meant(handlers), expect_handler=_expected)
    app.on_response_prepare.append(uploads.mark)
    app.on_response_prepare.append(_name_no_versions)
    app.cleanup_ctx.append(_resources)
    if work:
        app.cleanup_ctx.append(_working)
    app.on_shutdown.append(_begin_draining)
    return app


@cache
def _document() -> bytes:
    return openapi.document(ROUTES, he_party.__version__)


async def drain(server: ServerContext) -> None:
    """Refuse new work and wait until requests in flight are done, at most `drain_seconds`."""
    begin_draining(server)
    with suppress(TimeoutError):
        async with asyncio.timeout(server.settings.drain_seconds):
            await server.drain.idle.wait()


def begin_draining(server: ServerContext) -> None:
    """From now on: no new work, readiness fails, event streams end, the worker stops after its step."""
    server.drain.stopping.set()
    server.news.end()


def _meant(handlers: Mapping[str, Handler]) -> Handler:
    """Of one path's handlers, that of the method that a request means."""

    async def handle(request: web.Request) -> web.StreamResponse:
        method = request[METHOD] = effective_method(request.method, request.headers.getall(METHOD_OVERRIDE, ()))
        if method not in handlers:
            raise web.HTTPMethodNotAllowed(method, handlers)
        return await handlers[method](request)

    return handle


def _guarded(server: ServerContext, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        check_empty(request)
        await authenticate(server, request, route.access)
        return await route.handler(server, request)

    async def handle_stranger(request: web.Request) -> web.StreamResponse:
        limit = server.settings.max_update_bytes
        held = min(route.held, check_declared(request.content_length, limit))
        async with server.stranger_bodies.admit(request[CONNECTION].address, held):
            await _let_send(request)
            async with minimum_rate(request, max(server.settings.min_rate, PACE_RATE), PACE_SECONDS):
                return await route.handler(server, request)

    async def handle_upload(request: web.Request) -> web.StreamResponse:
        await authenticate(server, request, route.access)
        sender = await route.sender(server, request)
        most = min(sender.most, server.settings.max_update_bytes)
        async with server.admission.admit(check_declared(request.content_length, most), sender.party):
            await _let_send(request)
            async with minimum_rate(request, server.settings.min_rate):
                return await route.handler(server, request)

    if route.takes is None:
        return handle
    return handle_stranger if route.held else handle_upload


async def _name_no_versions(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "HushSum"  # aiohttp would tell its version and Python's


async def _expected(request: web.Request) -> None:
    """Sends nothing yet: "100 Continue" (RFC 9110 section 10.1.1) follows once the upload is admitted."""


async def _let_send(request: web.Request) -> None:
    request[CONNECTION].reading = True
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def _begin_draining(app: web.Application) -> None:
    begin_draining(app[SERVER])


async def _resources(app: web.Application) -> AsyncIterator[None]:
    yield
    server = app[SERVER]
    await server.store.close()
    server.threads.shutdown()


async def _working(app: web.Application) -> AsyncIterator[None]:
    server = app[SERVER]
    server.worker = asyncio.create_task(Worker(server).run(server.drain.stopping))
    yield
    begin_draining(server)
    await asyncio.wait({server.worker}, timeout=server.settings.drain_seconds)
    server.worker.cancel()
    await asyncio.gather(server.worker, return_exceptions=True)
