"""What a holder and a server do with one manifest, in memory: judging, releasing, combining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from he_protocol import residues
from he_protocol.messages import SignedUpdate, UpdateHeader
from he_protocol.quantise import Integers
from he_protocol.signing import SigningKey, read_unverified
from keys.checks import History, Request
from keys.holder import release
from keys.schemes import make_opener
from tests.support.parties import NOW, World, random_integers

FRESH = History(None, frozenset(), 0, 0)


@dataclass(frozen=True)
class Sent:
    """One client's update: what it meant, what travels, and its signed head."""

    integers: Integers
    body: dict[str, bytes]
    update: SignedUpdate

    @property
    def header(self) -> UpdateHeader:
        return read_unverified(self.update.header, UpdateHeader)


def send(world: World, name: str, folder: Path, seed: int, **changes: object) -> Sent:
    """A client's update, encrypted by TenSEAL; `changes` are to its header."""
    integers = random_integers(world.task.length, seed, 1 << 20)
    body = world.encrypt(integers, folder)
    return Sent(integers, body, world.update(name, body, **changes))


def ask(
    world: World,
    updates: Sequence[SignedUpdate],
    *,
    history: History = FRESH,
    floor: int = 1,
    now: float = NOW,
    number: int = 1,
    signer: SigningKey | None = None,
    given: Sequence[SignedUpdate] | None = None,
    **changes: object,
) -> Request:
    """A server's request to open `updates`; `given` are the headers that come along, if others."""
    token, ordered = world.manifest(list(updates), number=number, signer=signer, **changes)
    listed = tuple(given) if given is not None else ordered
    return Request(world.task, world.authority.key.public, token, listed, history, floor, now)


def after(first: Request, second: Request) -> Request:
    """`second` as a holder sees it that has opened `first`: what its ledger would tell."""
    same = first.manifest.round == second.manifest.round
    opened = {entry.update_id for entry in first.manifest.updates}
    again = frozenset() if same else frozenset(opened & {entry.update_id for entry in second.manifest.updates})
    return replace(second, history=History(first.manifest_hash if same else None, again, 0 if same else 1, 0))


def share(world: World, holder: int, request: Request, bodies: dict[bytes, bytes]) -> dict[int, bytes]:
    """What one holder releases for a request, unjudged: packed vectors by part. `bodies`: c1 by update id."""
    total = make_opener(world.task, holder, world.hpke[holder], world.dealt[0][holder]).begin()
    for header in request.headers:
        total.add(header, bodies[header.update_id])
    message, vectors = release(request, world.committee[holder].name, total)
    return {entry.part: vector for entry, vector in zip(message.parts, vectors, strict=True)}


def open_sum(world: World, request: Request, sent: Sequence[Sent]) -> Integers:
    """The sum that a quorum of holders and the server open for a request: nobody judges it."""
    scheme, layout = world.task.scheme, world.task.scheme.share_layout(world.task.length)
    by_id = {one.header.update_id: one for one in sent}
    parts: dict[int, bytes] = {}
    for holder in range(world.task.config.threshold):
        parts |= share(world, holder, request, {update_id: one.body["c1"] for update_id, one in by_id.items()})
    total = layout.zeros()
    for header in request.headers:
        residues.fold(total.reshape(layout.rows, layout.degree), by_id[header.update_id].body["c0"], layout)
    vectors = [residues.unpack(parts[i], layout) for i in range(world.task.sharing.parts)]
    return scheme.combine(total, vectors, world.task.length, len(request.updates), world.task.epoch_id)
