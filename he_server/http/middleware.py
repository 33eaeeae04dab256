"""Around every request: one log line, metrics, and every error as a problem document."""

from __future__ import annotations

import asyncio
import time
from asyncio import IncompleteReadError

import structlog
from aiohttp import ClientPayloadError, web
from aiohttp.hdrs import METH_ALL
from aiohttp.typedefs import Handler, Middleware

from he_protocol.errors import ProblemError
from he_protocol.problems import (
    EXPECTATION_FAILED,
    INTERNAL,
    MALFORMED,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    SHUTTING_DOWN,
    TOO_LARGE,
)
from he_server.http.auth import CONNECTION, METHOD, PARTY
from he_server.http.openapi import PROBLEM
from he_server.http.pacing import draw_retry_after
from he_server.http.responses import STREAMING
from he_server.rules.bodies import check_codings
from he_server.services.connections import Connection, LimitedProtocol
from he_server.services.context import ServerContext
from he_server.services.metrics import Metrics
from he_server.services.strangers import RateLimiter

RETRY_SECONDS = "1"
CONTINUE = "100-continue"
LINGER_BYTES = 1 << 20
"""Bytes of a stranger's refused body that are still read, so that its sender sees the answer."""
_HTTP = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED, 413: TOO_LARGE}
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

log = structlog.get_logger()


def observe(server: ServerContext) -> Middleware:
    """The one middleware."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        start = time.monotonic()
        server.drain.enter()
        connection = request[CONNECTION] = connection_of(request)
        connection.busy = True
        status = 0
        try:
            response = await _answer(server, request, handler)
            if connection.stranger and not request.content.is_eof():
                _read_no_more(request, response)
            status = response.status
            return response
        finally:
            connection.busy = connection.reading = False
            server.connections.consumed(connection, head_bytes(request) + request.content.total_bytes)
            server.drain.leave()
            _record(server.metrics, request, status, time.monotonic() - start)

    return middleware


def problem_response(refusal: ProblemError) -> web.Response:
    """A refusal as RFC 9457 has it."""
    headers = {}
    if refusal.problem.status == 401:
        headers["WWW-Authenticate"] = "DPoP"
    if refusal.problem.status == 503:
        headers["Retry-After"] = RETRY_SECONDS
    if refusal.problem.status == 429:
        headers["Retry-After"] = str(draw_retry_after())
    return web.Response(body=refusal.document(), status=refusal.problem.status, content_type=PROBLEM, headers=headers)


async def _answer(server: ServerContext, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if server.drain.stopping.is_set() and request.path not in _PROBES:
            raise ProblemError(SHUTTING_DOWN, "the server finishes what it has begun")
        expected = request.headers.get("Expect", CONTINUE)
        if expected.lower() != CONTINUE:
            raise ProblemError(EXPECTATION_FAILED, "Expect", expected=CONTINUE, got=expected[:80])
        check_codings(request.headers.getall("Content-Encoding", ()), request.headers.getall("Transfer-Encoding", ()))
        return await _in_turn(server.stranger_requests, request, handler)
    except ProblemError as refusal:
        if refusal.__cause__ is not None:
            log.warning("refused for a failure", problem=refusal.problem.slug, cause=repr(refusal.__cause__))
        return _refuse(server.metrics, request, refusal)
    except web.HTTPException as error:
        problem = _HTTP.get(error.status, MALFORMED)
        response = _refuse(server.metrics, request, ProblemError(problem, f"{_meant(request)} {request.path[:200]}"))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except (ConnectionError, ClientPayloadError, IncompleteReadError, web.RequestPayloadError):
        if STREAMING in request:  # the receiver has disconnected
            return _break_off(request)
        return _refuse(server.metrics, request, ProblemError(MALFORMED, "the request ended early"))
    except Exception:
        log.exception("unexpected failure", method=_meant(request), route=route_of(request))
        return _refuse(server.metrics, request, ProblemError(INTERNAL, "see the server's log"))


async def _in_turn(limiter: RateLimiter, request: web.Request, handler: Handler) -> web.StreamResponse:
    connection = request[CONNECTION]
    if not connection.stranger:
        return await handler(request)
    await limiter.take(connection.asked)
    connection.asked += 1
    try:
        return await handler(request)
    finally:
        if not connection.stranger:
            limiter.give_back()


def _read_no_more(request: web.Request, response: web.StreamResponse) -> None:
    """End the connection with this answer; if much of the body is still to come, none of it is read."""
    response.force_close()
    left = (request.content_length or LINGER_BYTES) - request.content.total_bytes
    if left >= LINGER_BYTES and isinstance(request.transport, asyncio.ReadTransport):
        request.transport.pause_reading()


def connection_of(request: web.Request) -> Connection:
    """The connection that a request came on; one that the server's own listener did not see is a stranger's."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol.connection if isinstance(protocol, LimitedProtocol) else Connection(request.remote or "")


def head_bytes(request: web.Request) -> int:
    """How many bytes a request's head had, written without spare blanks."""
    return (
        len(request.method)
        + len(request.raw_path)
        + len("  HTTP/1.1\r\n\r\n")
        + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    )


def _refuse(metrics: Metrics, request: web.Request, refusal: ProblemError) -> web.StreamResponse:
    metrics.refused.labels(route_of(request), refusal.problem.slug).inc()
    if STREAMING in request:
        return _break_off(request)
    return problem_response(refusal)


def _break_off(request: web.Request) -> web.StreamResponse:
    """End an answer that has begun so that its receiver, if there is one, cannot take it for whole."""
    if request.transport is not None:
        request.transport.abort()
    return request[STREAMING]


def _record(metrics: Metrics, request: web.Request, status: int, seconds: float) -> None:
    route = route_of(request)
    method = meant if (meant := _meant(request)) in METH_ALL else "other"
    metrics.requests.labels(method, route, str(status)).inc()
    metrics.latency.labels(method, route).observe(seconds)
    party = request[PARTY].name if PARTY in request else ""
    # Polls are no events: what only asked, and was answered, is not shown by default.
    tell = log.debug if method in {"GET", "HEAD"} and status < 400 else log.info
    tell("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1), party=party)


def _meant(request: web.Request) -> str:
    method: str = request.get(METHOD, request.method)
    return method


def route_of(request: web.Request) -> str:
    """The template of the route, so that ids do not become metrics."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"
