"""The authority's revocation list: anybody may ask for it, and anybody may bring a newer one."""

from __future__ import annotations

from aiohttp import web

from he_protocol.documents import Revoked
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import TOKEN_LIMIT
from he_protocol.problems import MALFORMED
from he_server.http.responses import answer
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.strangers import in_time


async def get_revocations(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    return answer(Revoked((await server.revocations.current()).token))


async def put_revocations(server: ServerContext, request: web.Request) -> web.StreamResponse:
    async with in_time():
        body = await Frame(request.content, TOKEN_LIMIT, request.content_length).body(TOKEN_LIMIT)
    try:
        token = body.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ProblemError(MALFORMED, "the revocation list is not ASCII") from None
    created = await server.revocations.accept(token)
    return answer(Revoked(token), 201 if created else 200)
