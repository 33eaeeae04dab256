"""The authority's revocation list: a newer one comes into force."""

from __future__ import annotations

from he_protocol.identity.revocation import Revocations, check_newer
from he_server.services.context import ServerContext


async def accept_revocations(server: ServerContext, token: str) -> bool:
    """Store a newer list, from any sender; False for the one that is known. Raises what is wrong with it."""
    if token and token == (await server.revocations()).token:
        return False
    offered = await server.unproved(lambda: Revocations.read(token, server.authority))
    check_newer(await server.revocations(), offered)  # before anybody waits for the database
    created = await server.store.revocations.learn(offered, server.clock())
    server.revocations_due = 0.0
    return created
