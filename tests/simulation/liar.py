"""A server that makes manifests of its own choice, gathers votes for them, and asks key holders for shares.

It works together with the key holder that lies, if there is one: that one votes for everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import msgspec
from aiohttp import web

from he_protocol import documents
from he_protocol.identity.jws import SigningKey, message_kind, payload_hash, read_unverified, token_hash
from he_protocol.messages import Manifest, ManifestEntry, SignedUpdate, Vote, from_json
from he_protocol.task import Task

from .machine import Machine, enter
from .schedules import HOLDERS
from .world import Frame, World

LIAR = "liar"
FAR = 1000
"""Round numbers from here on are the liar's inventions."""

Numbering = Literal["fork", "next", "few", "skip", "reuse", "beyond"]
"""Which opening number, and which round, a lie has: those of the newest manifest; the next number (few: for one update
less than the task's minimum); one that leaves numbers out; one that was used; one that the plan does not have. But for
a fork, its round never was."""
ATTACKS: tuple[tuple[Numbering, bool], ...] = (
    ("fork", False),
    ("next", False),
    ("fork", True),
    ("next", True),
    ("next", True),
    ("few", True),
    ("reuse", True),
    ("skip", True),
    ("beyond", True),
)
"""Each with whether it is over updates that nobody has opened."""
Proof = Literal["gathered", "repeated", "forged", "replayed"]
"""What stands for the missing votes: nothing; the same votes again; votes that the liar signed in the names of others;
votes for other manifests."""
PROOFS: tuple[Proof, ...] = get_args(Proof)


@dataclass
class Lie:
    """A manifest that the honest server never made, correctly signed with its key, and what a holder is asked for.

    heard: the votes that came of it.
    """

    task: Task
    number: int
    token: str
    manifest: Manifest
    frames: tuple[Frame, ...]
    stage: documents.Stage = "vote"
    votes: tuple[str, ...] = ()
    heard: list[str] = field(default_factory=list)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the protocol has a server answer to a key holder about this one opening."""
        at = f"/v1/tasks/{self.task.id}"
        match request.path.removeprefix(at):
            case "/openings":
                return _document(documents.PendingOpenings((documents.Waiting(self.number, self.stage),)))
            case path if path == f"/rounds/{self.number}/opening":
                return _document(documents.Opening(self.stage, self.token, self.votes))
            case path if path == f"/rounds/{self.number}/heads":
                return _document(documents.Heads(tuple(from_json(frame.head, SignedUpdate) for frame in self.frames)))
            case path if path == f"/rounds/{self.number}/key-sections":
                size = self.task.section("key").size
                return web.Response(body=b"".join(frame.body[-size:] for frame in self.frames))
            case path if path.endswith("/openings"):  # of another task
                return _document(documents.PendingOpenings(()))
        body = await request.read()
        if "/answers/" in request.path and message_kind(body.decode()) == "vote":
            self.heard.append(body.decode())
        return web.Response(status=201)


def make_lie(world: World, *, numbering: Numbering, unopened: bool, pick: int) -> Lie | None:
    """A lie over updates that the server has, of one base version and at most one for each client; None while it has
    too few.

    unopened: of updates of the open round, which nobody has opened; otherwise of the others.
    """
    task, seen = world.task, world.seen
    query = (
        "SELECT update_id FROM updates JOIN rounds ON rounds.id = round_id"
        " WHERE updates.task_hash = ? AND (rounds.state = 'open') = ? ORDER BY received, update_id"
    )
    known = [world.record.frames[update] for (update,) in seen(query, task.id, unopened)]
    newest = seen("SELECT max(number), max(opening) FROM rounds WHERE task_hash = ? AND manifest != ''", task.id)[0]
    if not known or (not newest[1] and numbering == "fork"):  # no manifest has a number yet
        return None
    bases = sorted({frame.base for frame in known}, reverse=True)
    base = bases[pick // 64 % 2 % len(bases)]
    chosen = []
    for client in sorted({frame.client for frame in known}):
        mine = [frame for frame in known if frame.client == client and frame.base == base]
        if pick >> client & 3 and mine:
            chosen.append(mine[-1])
    least = task.config.rounds.min_clients
    if len(chosen) < least:
        return None
    world.record.lies += 1
    used = newest[1] or 0
    opening = {
        "fork": used,
        "next": used + 1,
        "few": used + 1,
        "skip": used + 2 + pick % 2,
        "reuse": 1 + pick % max(1, used),
        "beyond": task.config.rounds.max_openings + 1,
    }[numbering]
    chosen = sorted(chosen[: least - 1] if numbering == "few" else chosen, key=lambda frame: frame.update_id)
    number = newest[0] if numbering == "fork" else FAR + world.record.lies
    entries = tuple(
        ManifestEntry(bytes.fromhex(f.update_id), f.client_name, token_hash(from_json(f.head, SignedUpdate).header), 0)
        for f in chosen
    )
    manifest = Manifest(task.hash, task.config.epoch, number, opening, int(world.clock()), base, entries)
    return Lie(task, number, world.cast.server.key.sign(manifest), manifest, tuple(chosen))


async def tell(world: World, lie: Lie, holder: int) -> str:
    """Have one key holder look at the lie as if the honest server had asked."""
    here = Machine(LIAR, world.server.disk)
    enter(here)
    server = web.Server(lie.serve, access_log=None)
    world.network.hosts[LIAR] = here, server
    return await world.answer(holder, LIAR, looks=1)


def certify(world: World, lie: Lie, proof: Proof) -> None:
    """Go on to ask for shares, with what there is of votes and what stands for the rest."""
    needed = lie.task.committee.agreement
    if world.traitor is not None:
        lie.heard.append(_vote(lie, world.traitor, world.cast.holders[world.traitor].key))
    votes = list(dict.fromkeys(lie.heard))
    missing = [index for index in range(HOLDERS) if f"holder-{index}" not in {_voter(token) for token in votes}]
    match proof:
        case "repeated":
            votes = (votes * needed)[: max(needed, len(votes))]
        case "forged":
            votes += [_vote(lie, index, world.cast.clients[0].key) for index in missing]
        case "replayed":
            rows = world.seen("SELECT token FROM answers WHERE kind = 'vote' ORDER BY received")
            votes += [token for (token,) in rows if _voter(token) in {f"holder-{index}" for index in missing}]
    lie.stage, lie.votes = "release", tuple(votes)


def _vote(lie: Lie, holder: int, key: SigningKey) -> str:
    digest = payload_hash(lie.token)
    return key.sign(Vote(lie.task.hash, lie.task.config.epoch, lie.manifest.opening, digest, f"holder-{holder}"))


def _voter(token: str) -> str:
    return read_unverified(token, Vote).holder


def _document(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
