"""Leases of rounds and accumulators, kept for as long as something long runs under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from he_party.uncancelled import to_its_end
from he_server.services.context import ServerContext

Renew: TypeAlias = Callable[[float, float], Coroutine[Any, Any, bool]]
"""Renews a lease: arguments are the time (Unix seconds) and the duration in seconds; False when it is lost."""


@asynccontextmanager
async def kept(server: ServerContext, renew: Renew) -> AsyncIterator[None]:
    """Renew a lease while something long runs under it."""
    renewing = asyncio.create_task(_renew(server, renew))
    try:
        yield
    except asyncio.CancelledError:  # the process stops: let it run out now, so that another goes on at once
        renewing.cancel()
        await renew(server.clock(), 0.0)
        raise
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


async def _renew(server: ServerContext, renew: Renew) -> None:
    seconds, renew = server.settings.lease_seconds, to_its_end(renew)
    while True:
        await asyncio.sleep(seconds / 3)
        if not await renew(server.clock(), seconds):
            server.metrics.leases_lost.inc()
            return
