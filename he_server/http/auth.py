"""Authentication of requests: the proof and the role that a route asks for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party
from he_protocol.identity.requests import check_request
from he_protocol.identity.revocation import check_key
from he_protocol.problems import UNAUTHENTICATED, WRONG_ROLE
from he_server.services.connections import Connection
from he_server.services.context import ServerContext

Access: TypeAlias = Literal["public", "any", "client", "holder"]
PARTY = web.RequestKey("party", Party)
CONNECTION = web.RequestKey("connection", Connection)
METHOD = web.RequestKey("method", str)
"""The method that is meant (`he_server.rules.requests.effective_method`)."""


async def authenticate(server: ServerContext, request: web.Request, access: Access) -> None:
    """Authenticate the sender of a request and store the `Party` in it. Raises what `check_request` raises, and
    `revoked-key`, `replayed-request`, `too-many-connections` or `wrong-role`."""
    if access == "public":
        return
    connection = request[CONNECTION]
    try:
        party = await _checked(server, request)
    except ProblemError:
        server.connections.doubt(connection)
        raise
    server.connections.prove(connection, party.public)
    request[PARTY] = party
    if access not in {"any", party.role}:
        raise ProblemError(WRONG_ROLE, f"{party.name!r} may not do this", expected=access, got=party.role)


async def _checked(server: ServerContext, request: web.Request) -> Party:
    """The party that proves to have sent a request. Strangers' signatures never delay those of known parties."""
    now = server.clock()
    check = server.threads.unproved if request[CONNECTION].stranger else server.threads.signatures
    party, proof = await check(
        lambda: check_request(
            request.headers.get("Authorization", ""),
            request.headers.get("DPoP", ""),
            authority=server.keys.authority,
            audience=server.keys.own.name,
            method=request[METHOD],
            path=request.raw_path,
            now=now,
        )
    )
    check_key(await server.revocations.current(), party.name, party.public)
    server.replays.use(party.public, proof, now)
    return party


def party_of(request: web.Request) -> Party:
    """The authenticated sender of the request."""
    if PARTY not in request:
        raise ProblemError(UNAUTHENTICATED, "the route needs a credential")
    return request[PARTY]
