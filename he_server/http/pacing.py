"""The least rate of an upload, and when a refused sender should retry."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.problems import REQUEST_TIMEOUT
from he_server.rules.admission import too_slow

RETRY_SECONDS = 5
"""The longest Retry-After; each is drawn between 1 and this (jitter, against synchronised retries)."""
PACE_SECONDS = 30.0
"""The time over which an upload's rate is averaged."""


def draw_retry_after() -> int:
    """Seconds that a refused sender should wait."""
    return 1 + secrets.randbelow(RETRY_SECONDS)


@asynccontextmanager
async def minimum_rate(request: web.Request, min_rate: float, seconds: float = PACE_SECONDS) -> AsyncIterator[None]:
    """Around reading a body: ends it with `request-timeout` when in any `seconds` it comes slower than `min_rate`.

    Without such a bound, a few senders that trickle their bytes hold every slot (slow loris).
    """
    content, transport = request.content, request.transport
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    try:
        async with asyncio.timeout(None) as deadline:

            def look(before: int) -> None:
                nonlocal timer
                if content.is_eof():
                    return
                held_up = isinstance(transport, asyncio.ReadTransport) and not transport.is_reading()
                if too_slow(content.total_bytes - before, seconds, min_rate, held_up=held_up):
                    deadline.reschedule(loop.time())
                else:
                    timer = loop.call_later(seconds, look, content.total_bytes)

            timer = loop.call_later(seconds, look, 0)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if not deadline.expired():
            raise
        detail = f"{content.total_bytes} bytes came before the upload stalled"
        raise ProblemError(
            REQUEST_TIMEOUT, detail, expected=f"{min_rate:g} bytes per second over {seconds:g} s"
        ) from None
