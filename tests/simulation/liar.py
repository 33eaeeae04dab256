"""A server that asks key holders for openings of its own choice: a second manifest of a round, or one that overlaps."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from aiohttp import web

from he_protocol import api
from he_protocol.messages import Manifest, ManifestEntry, SignedUpdate, decode
from he_protocol.signing import token_hash
from he_protocol.task import Task

from .machine import Machine, enter
from .world import Frame, World

LIAR = "liar"
FAR = 1000
"""Round numbers from here on are the liar's inventions."""


@dataclass(frozen=True)
class Lie:
    """A manifest that the honest server never made, correctly signed with its key."""

    task: Task
    number: int
    manifest: str
    frames: tuple[Frame, ...]

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the protocol has a server answer to a key holder about this one opening."""
        at = f"/v1/tasks/{self.task.id}"
        if not request.path.startswith(at):
            return _document(api.PendingOpenings(()))
        if request.path == f"{at}/openings":
            return _document(api.PendingOpenings((self.number,)))
        if request.path == f"{at}/rounds/{self.number}/opening":
            return _document(api.Opening(self.manifest, tuple(decode(f.head, SignedUpdate) for f in self.frames)))
        if request.path == f"{at}/rounds/{self.number}/key-parts":
            size = self.task.part("key").size
            return web.Response(body=b"".join(frame.body[-size:] for frame in self.frames))
        await request.read()
        return web.Response(status=201)


def make_lie(world: World, *, invented: bool, unopened: bool, pick: int) -> Lie | None:
    """A lie over updates that the server has, one for each client; None while it has too few.

    invented: under a round number that never was; otherwise under that of the newest manifest. unopened: only updates
    of the open round, which nobody has opened.
    """
    task = world.task
    query = (
        "SELECT update_id FROM updates JOIN rounds ON rounds.id = round_id"
        " WHERE updates.task_hash = ? AND (rounds.state = 'open' OR NOT ?) ORDER BY received, update_id"
    )
    rows = world.seen(query, task.id, unopened)
    known = [world.record.frames[update] for (update,) in rows]
    newest = world.seen("SELECT max(number) FROM rounds WHERE task_hash = ? AND manifest != ''", task.id)[0][0]
    version = world.seen("SELECT max(version) FROM models WHERE task_hash = ?", task.id)[0][0]
    chosen = []
    for client in sorted({frame.client for frame in known}):
        mine = [frame for frame in known if frame.client == client]
        pick, index = divmod(pick, len(mine) + 1)
        if index < len(mine):
            chosen.append(mine[-1 - index])
    if len(chosen) < task.config.min_clients or (newest is None and not invented):
        return None
    world.record.lies += 1
    number = FAR + world.record.lies if invented else newest
    chosen.sort(key=lambda frame: frame.update_id)
    entries = tuple(
        ManifestEntry(bytes.fromhex(f.update_id), f.client_name, token_hash(decode(f.head, SignedUpdate).header), 0)
        for f in chosen
    )
    manifest = Manifest(task.hash, task.config.epoch, number, version, entries)
    return Lie(task, number, world.cast.server.key.sign(manifest), tuple(chosen))


async def tell(world: World, lie: Lie, holder: int) -> str:
    """Have one key holder look at the lie as if the honest server had asked."""
    here = Machine(LIAR, world.server.disk)
    enter(here)
    server = web.Server(lie.serve, access_log=None)
    world.network.hosts[LIAR] = here, server
    return await world.answer(holder, LIAR)


def _document(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
