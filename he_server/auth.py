"""Who may call a route: the request's proof, the role, and for key holders the committee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from aiohttp import web

from he_protocol.identity import Party, check_request
from he_protocol.problems import NOT_ADDRESSED, NOT_FOUND, UNAUTHENTICATED, WRONG_ROLE, Refusal
from he_protocol.revocation import check_key
from he_protocol.task import HolderEntry, Task
from he_server.door import Connection
from he_server.server import Server

Access: TypeAlias = Literal["public", "any", "client", "holder"]
PARTY = web.RequestKey("party", Party)
CONNECTION = web.RequestKey("connection", Connection)


@dataclass(frozen=True)
class Member:
    """A key holder of a task's committee: its number in the sharing and its entry."""

    index: int
    entry: HolderEntry


async def authenticate(server: Server, request: web.Request, access: Access) -> None:
    """Check who sends a request and keep the `Party` in it. Raises what `check_request` raises, and
    `revoked-key`, `replayed-request`, `too-many-connections` or `wrong-role`."""
    if access == "public":
        return
    connection = request[CONNECTION]
    try:
        party = await _checked(server, request)
    except Refusal:
        server.door.doubt(connection)
        raise
    server.door.prove(connection, party.public)
    request[PARTY] = party
    if access not in {"any", party.role}:
        raise Refusal(WRONG_ROLE, f"{party.name!r} may not do this", expected=access, got=party.role)


async def _checked(server: Server, request: web.Request) -> Party:
    """Who proves to have sent a request. Signatures of strangers never keep those of known parties waiting."""
    now = server.clock()
    check = server.unproved if request[CONNECTION].stranger else server.signatures
    party, proof = await check(
        lambda: check_request(
            request.headers.get("Authorization", ""),
            request.headers.get("DPoP", ""),
            authority=server.authority,
            audience=server.key.name,
            method=request.method,
            path=request.raw_path,
            now=now,
        )
    )
    check_key(await server.revocations(), party.name, party.public)
    server.replays.use(party.public, proof, now)
    return party


def party_of(request: web.Request) -> Party:
    """Who sent the request."""
    if PARTY not in request:
        raise Refusal(UNAUTHENTICATED, "the route needs a credential")
    return request[PARTY]


def check_member(task: Task, party: Party) -> Member:
    """The committee's entry of a holder. Raises `wrong-role` for a holder of another committee, or with another key."""
    index = task.holder_index(party.name)
    if index is None or task.config.holders[index].key != party.public:
        raise Refusal(
            WRONG_ROLE, f"{party.name!r} is not in the task's committee with this key", expected="a committee member"
        )
    return Member(index, task.config.holders[index])


def check_self(party: Party, named: str) -> None:
    """Raises `not-addressed` when a holder writes under another name."""
    if named != party.name:
        raise Refusal(NOT_ADDRESSED, "the path names another holder", expected=party.name, got=named[:64])


def hex_id(text: str, size: int, what: str) -> bytes:
    """An id of `size` bytes from its lower-case hex. Raises `not-found` for anything else."""
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        raise Refusal(NOT_FOUND, f"no such {what}", expected=f"{2 * size} lower-case hex digits", got=text[:80])
    return bytes.fromhex(text)
