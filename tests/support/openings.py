"""What a holder and a server do with one manifest, in memory: judging, releasing, combining."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from he_client.quantise import Words, secret_words
from he_holder.release import BucketSums, make_share
from he_holder.request import LedgerView, OpeningRequest
from he_holder.schemes import make_share_maker
from he_protocol.arithmetic import residues
from he_protocol.arithmetic.residues import Residues
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import Share, SignedUpdate, UpdateHeader, Vote
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes import scheme
from tests.support.parties import NOW, World, random_integers

FRESH = LedgerView()


@dataclass(frozen=True)
class Sent:
    """One client's update: what it meant, what travels, and its signed head."""

    integers: Integers
    body: dict[str, bytes]
    update: SignedUpdate

    @property
    def header(self) -> UpdateHeader:
        return read_unverified(self.update.header, UpdateHeader)


def send(world: World, name: str, folder: Path, seed: int, **changes: Any) -> Sent:
    """A client's update, encrypted by TenSEAL; `changes` are to its header."""
    integers = random_integers(world.task.length, seed, 1 << 20)
    body = world.encrypt(integers, folder)
    return Sent(integers, body, world.update(name, body, **changes))


def send_kahe(
    world: World, name: str, integers: Integers, *, threads: int = 1, words: Words = secret_words, **changes: Any
) -> Sent:
    """A client's update under scheme `kahe`; `changes` are to its header."""
    update_id = secrets.token_bytes(16)
    body = world.encrypt_kahe(name, update_id, integers, threads=threads, words=words)
    return Sent(integers, body, world.update(name, body, **{"update_id": update_id} | changes))


def ask(
    world: World,
    updates: Sequence[SignedUpdate],
    *,
    ledger_view: LedgerView = FRESH,
    min_clients_floor: int = 1,
    now: float = NOW,
    number: int = 1,
    signer: SigningKey | None = None,
    given: Sequence[SignedUpdate] | None = None,
    **changes: Any,
) -> OpeningRequest:
    """A server's request to open `updates`; `given` are the headers that come along, if others."""
    token, ordered = world.manifest(list(updates), number=number, signer=signer, **changes)
    listed = tuple(given) if given is not None else ordered
    return OpeningRequest(world.task, world.authority.key.public, token, listed, ledger_view, min_clients_floor, now)


def after(first: OpeningRequest, second: OpeningRequest) -> OpeningRequest:
    """`second` as a holder sees it that has opened `first`: what its ledger would tell."""
    same = first.manifest.opening == second.manifest.opening
    opened = {entry.update_id for entry in first.manifest.updates}
    again = frozenset() if same else frozenset(opened & {entry.update_id for entry in second.manifest.updates})
    return replace(second, ledger_view=LedgerView(first.manifest_hash if same else None, again))


def vote(
    world: World, holder: int, request: OpeningRequest, /, *, signer: SigningKey | None = None, **changes: Any
) -> str:
    """One holder's vote for a request's manifest; `changes` are to the vote."""
    task, manifest = world.task, request.manifest
    cast = Vote(task.hash, task.config.epoch, manifest.opening, request.manifest_hash, world.committee[holder].name)
    return (signer or world.committee[holder].key).sign(msgspec.structs.replace(cast, **changes))


def certify(world: World, request: OpeningRequest, holders: Sequence[int] | None = None) -> OpeningRequest:
    """The request with votes of these holders, by default of the first that are enough."""
    voters = range(world.task.config.committee.agreement) if holders is None else holders
    return replace(request, votes=tuple(vote(world, holder, request) for holder in voters))


def answer(
    world: World, holder: int, request: OpeningRequest, bodies: Mapping[bytes, bytes]
) -> tuple[Share, dict[tuple[int, int], bytes]]:
    """One holder's share for a request, unjudged, and its packed vectors by bucket and part.

    `bodies`: key parts by update id.
    """
    opener = make_share_maker(world.task, holder, world.hpke[holder], world.seeds(holder))
    sums = BucketSums(opener, request.manifest)
    for header in request.headers:
        sums.add(header, bodies[header.update_id])
    message, vectors = make_share(request, world.committee[holder].name, sums)
    return message, {(e.bucket, e.subshare): vector for e, vector in zip(message.vectors, vectors, strict=True)}


def share(
    world: World, holder: int, request: OpeningRequest, bodies: Mapping[bytes, bytes], bucket: int = 0
) -> dict[int, bytes]:
    """What one holder releases for one bucket of a request, unjudged: packed vectors by part."""
    _, vectors = answer(world, holder, request, bodies)
    return {part: vector for (of, part), vector in vectors.items() if of == bucket}


def folded(world: World, sent: Sequence[Sent]) -> Residues:
    """What the server has added up: the "sum" parts of these updates."""
    part = world.task.section("sum")
    assert part.layout is not None
    total = part.layout.zeros()
    for one in sent:
        residues.fold(total.reshape(part.layout.rows, part.layout.degree), one.body[part.name], part.layout)
    return total


def key_sections(world: World, sent: Sequence[Sent]) -> dict[bytes, bytes]:
    """What holders download of these updates, by update id."""
    name = world.task.section("key").name
    return {one.header.update_id: one.body[name] for one in sent}


def shares(
    world: World, holder: int, request: OpeningRequest, sent: Sequence[Sent], bucket: int = 0
) -> dict[int, bytes]:
    """What one holder releases for one bucket of these updates, unjudged."""
    return share(world, holder, request, key_sections(world, sent), bucket)


def combine(world: World, parts: Mapping[int, bytes], sent: Sequence[Sent]) -> Integers:
    """What the server opens from one packed vector for each part."""
    task = world.task
    layout = task.scheme.share_layout(task.length)
    vectors = [residues.unpack(parts[i], layout) for i in range(task.sharing.subshares)]
    return scheme.combine(task.scheme, folded(world, sent), vectors, task.length, len(sent), task.epoch_id)


def decrypt_sum(
    world: World, request: OpeningRequest, sent: Sequence[Sent], quorum: Sequence[int] | None = None, bucket: int = 0
) -> Integers:
    """The sum of a bucket that a quorum (by default the first holders) and the server open: nobody judges it."""
    by_id = {one.header.update_id: one for one in sent}
    listed = [by_id[header.update_id] for header in request.headers]  # as often as the manifest lists them
    parts: dict[int, bytes] = {}
    for holder in quorum if quorum is not None else range(world.task.config.committee.threshold):
        parts |= shares(world, holder, request, listed, bucket)
    entries = zip(request.manifest.updates, listed, strict=True)
    return combine(world, parts, [one for entry, one in entries if entry.bucket == bucket])
