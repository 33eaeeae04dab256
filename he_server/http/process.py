"""The life of a server process: listen, drain at SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import ssl
from pathlib import Path

import structlog
from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.http.app import drain, make_app
from he_server.http.listening import Listener
from he_server.http.logging import http_log
from he_server.services.connections import ConnectionLimiter
from he_server.services.context import open_server
from he_server.services.migration import migrate
from he_server.settings import Settings

KEEPALIVE_SECONDS = 20.0
"""How long a connection may take for a request's head, or stay idle: longer than aiohttp's clients keep one (15 s)."""
LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read, so that its sender sees the answer."""
MAX_HEADERS, MAX_HEADER_BYTES = 64, 4094
SPARE_FILES = 512
"""Open files beside one for every connection: blobs, the database, those that are told that they are too many."""

log = structlog.get_logger()


async def run(settings: Settings, port_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises the refusal that keeps the server from starting."""
    context = _tls(settings)
    await migrate(settings)
    server = open_server(settings)
    runner = make_runner(make_app(server), settings.drain_seconds)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    allow_files(settings.max_connections + SPARE_FILES)
    await runner.setup()
    listener = make_listener(runner, server.connections, context)
    try:
        try:
            port = await listener.start(settings.host, settings.port)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise ProblemError(BAD_SETTINGS, f"cannot listen on {where}: {error.strerror or error}") from None
        log.info("ready", url=f"{'https' if context else 'http'}://{settings.host}:{port}", name=server.keys.own.name)
        if port_file is not None:
            await asyncio.to_thread(_write_port, port_file, port)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: no need to look through it again and again
        await stop.wait()
        log.info("draining", in_flight=server.drain.in_flight)
        await drain(server)
    finally:
        await listener.stop()
        await runner.cleanup()
    log.info("stopped")


def make_runner(app: web.Application, shutdown_seconds: float = 60.0) -> web.AppRunner:
    """HTTP for the application, within bounds. Bodies are not decompressed: the application refuses such as are."""
    return web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        logger=http_log(),
        shutdown_timeout=shutdown_seconds,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=LINGER_SECONDS,
        max_headers=MAX_HEADERS,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        auto_decompress=False,
    )


def make_listener(runner: web.AppRunner, limiter: ConnectionLimiter, context: ssl.SSLContext | None = None) -> Listener:
    """What accepts connections for a runner that was set up."""
    protocols = runner.server
    assert protocols is not None
    return Listener(protocols, limiter, context)


def allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _write_port(path: Path, port: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(f"{port}\n")
    partial.replace(path)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"TLS certificate or key: {error}") from None
    return context
