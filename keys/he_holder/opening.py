"""What a key holder does for the rounds of one task: it screens updates, votes for manifests, and releases shares."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from he_holder.holder import KeyHolder
from he_holder.release import BucketSums, check_section, make_share
from he_holder.request import LedgerView, OpeningRequest
from he_holder.rules import RELEASING, VOTING, check_alive, screen
from he_holder.schemes import ShareMaker
from he_party.transport import Transport
from he_protocol import documents, limits, paths
from he_protocol.errors import ProblemError, Unavailable
from he_protocol.identity.jws import payload_hash, read_unverified, token_hash
from he_protocol.identity.revocation import Revocations
from he_protocol.messages import Exclusion, Manifest, Message, Objection, Screening, SignedUpdate, UpdateHeader, Vote
from he_protocol.problems import DIGEST_MISMATCH, MANIFEST_MISMATCH, WRONG_STATE
from he_protocol.task import Task

BATCH_BYTES = 1 << 20
"""Sections that are added up in one turn of a thread."""
DETAIL_LIMIT = 2000


class Openings:
    """One holder, one task. The round at hand is kept in memory, so that its updates come, and are opened, once."""

    def __init__(self, holder: KeyHolder, task: Task) -> None:
        self._holder = holder
        self._task = task
        self._heads: dict[bytes, SignedUpdate] = {}
        self._sums: BucketSums | None = None

    async def serve(self, number: int, transport: Transport) -> documents.Stage:
        """Do what a round asks of this holder now, and answer what that was.

        Raises the refusal, which the server is told and the ledger keeps; not so a failure of the service, or
        `wrong-state`: the round has moved on without us.
        """
        holder, task = self._holder, self._task
        check_alive(task, task.hash in await holder.ledger.destroyed())
        path = paths.opening_path(task.id, number)
        server, limit = task.config.server.name, limits.opening(task)
        asked = await transport.document("GET", path, documents.Opening, audience=server, limit=limit)
        try:
            share_maker = await asyncio.to_thread(holder.share_maker, task)
            request = await self._request(number, asked, transport)
            match asked.stage:
                case "screen":
                    await self._screen(request, share_maker, transport)
                case "vote":
                    await self._vote(request, transport)
                case "release":
                    await self._release(request, share_maker, transport)
        except Unavailable:  # somebody could not answer: nothing is wrong
            raise
        except ProblemError as refusal:
            if refusal.problem is not WRONG_STATE:
                await holder.ledger.refused(task, number, refusal, holder.clock(), asked.manifest)
                await self._object(number, asked, refusal, transport)
            elif asked.stage != "screen":  # the others were enough
                await holder.ledger.settled(task, number, holder.clock())
            raise
        return asked.stage

    async def _request(self, number: int, asked: documents.Opening, transport: Transport) -> OpeningRequest:
        """The opening request to check, with the heads that the manifest lists. Raises `manifest-mismatch`."""
        holder, task = self._holder, self._task
        manifest = read_unverified(asked.manifest, Manifest)
        if manifest.round != number:
            raise ProblemError(
                MANIFEST_MISMATCH, "the manifest is of another round", expected=number, got=manifest.round
            )
        if asked.revocations:
            offered = await asyncio.to_thread(Revocations.read, asked.revocations, holder.identity.authority)
            await holder.ledger.learn_revocations(offered)
        if not all(entry.header in self._heads for entry in manifest.updates):
            path = paths.heads_path(task.id, number)
            server, limit = task.config.server.name, limits.heads(task)
            heads = await transport.document("GET", path, documents.Heads, audience=server, limit=limit)
            self._heads = {token_hash(update.header): update for update in heads.updates}
        updates = tuple(self._heads[entry.header] for entry in manifest.updates if entry.header in self._heads)
        return OpeningRequest(
            task,
            holder.identity.authority,
            asked.manifest,
            updates,
            LedgerView(),
            holder.min_clients_floor,
            holder.clock(),
            holder.require_revocations,
            asked.votes,
        )

    async def _screen(self, request: OpeningRequest, share_maker: ShareMaker, transport: Transport) -> None:
        """Say which updates should be left out: by the rules, or because they cannot be opened."""
        request = await self._holder.ledger.informed(request)
        found = {one.update_id: one.problem for one in await asyncio.to_thread(screen, request)}
        self._sums = await self._add_up(request, share_maker, transport, found)
        excluded = tuple(Exclusion(update, problem) for update, problem in (found | self._sums.unusable).items())
        number, seen = request.manifest.round, await self._holder.ledger.newest(self._task.hash)
        said = Screening(*self._about(number, request.manifest_hash), *seen, excluded)
        await self._put(number, said, transport)

    async def _vote(self, request: OpeningRequest, transport: Transport) -> None:
        """Check and record the vote durably, and only then send it."""
        request = await self._holder.ledger.decide(request, VOTING)
        task, manifest = self._task, request.manifest
        name = self._holder.identity.name
        vote = Vote(task.hash, task.config.epoch, manifest.opening, request.manifest_hash, name)
        await self._put(manifest.round, vote, transport)

    async def _release(self, request: OpeningRequest, share_maker: ShareMaker, transport: Transport) -> None:
        """Send our share of a certified manifest."""
        holder, task = self._holder, self._task
        request = await holder.ledger.decide(request, RELEASING)
        if self._sums is None or not self._sums.covers(request.manifest):
            self._sums = await self._add_up(request, share_maker, transport, None)
        share, vectors = await asyncio.to_thread(make_share, request, holder.identity.name, self._sums)
        head = holder.identity.key.sign(share).encode()
        number = request.manifest.round
        path = paths.share_path(task.id, number, holder.identity.name)
        await transport.put_frame(path, head, vectors, task.config.server.name)
        await holder.ledger.settled(task, number, holder.clock())
        self._heads, self._sums = {}, None

    async def _add_up(
        self, request: OpeningRequest, share_maker: ShareMaker, transport: Transport, found: dict[bytes, str] | None
    ) -> BucketSums:
        """The key-layer sums over what clients signed, but for the updates in `found`.

        Where there is a `found`, an update whose section is not what was signed joins it; otherwise that is refused.
        """
        task, sums = self._task, BucketSums(share_maker, request.manifest)
        section = task.section("key")
        bodies = transport.records(
            paths.key_sections_path(task.id, request.manifest.round),
            audience=task.config.server.name,
            size=section.size,
            count=len(request.headers),
        )

        def add(batch: list[tuple[UpdateHeader, bytes]]) -> None:
            for header, body in batch:
                if found and header.update_id in found:
                    continue
                try:
                    check_section(header, section.name, body)
                except ProblemError:
                    if found is None:
                        raise
                    found[header.update_id] = DIGEST_MISMATCH.slug
                else:
                    sums.add(header, body)

        batch: list[tuple[UpdateHeader, bytes]] = []
        async with aclosing(bodies):
            for header in request.headers:
                batch.append((header, await anext(bodies)))
                if len(batch) * section.size >= BATCH_BYTES:
                    await asyncio.to_thread(add, batch)
                    batch = []
            await asyncio.to_thread(add, batch)
            await anext(bodies, None)  # lets the stream check that nothing follows
        return sums

    async def _object(self, number: int, asked: documents.Opening, refusal: ProblemError, transport: Transport) -> None:
        """Tell the server what we refuse, so that operators can see it there."""
        try:
            digest = payload_hash(asked.manifest)
        except ProblemError:  # no manifest at all: nothing to object to
            return
        seen = await self._holder.ledger.newest(self._task.hash)
        said = Objection(*self._about(number, digest), *seen, refusal.problem.slug, str(refusal)[:DETAIL_LIMIT])
        try:
            await self._put(number, said, transport)
        except ProblemError:
            return  # what counts is the refusal itself, which is raised

    def _about(self, number: int, manifest: bytes) -> tuple[bytes, int, int, bytes, str]:
        """The first fields of every answer about a round's manifest."""
        return self._task.hash, self._task.config.epoch, number, manifest, self._holder.identity.name

    async def _put(self, number: int, message: Message, transport: Transport) -> None:
        """Sign and send what is not secret."""
        task, identity = self._task, self._holder.identity
        path = paths.answer_path(task.id, number, identity.name)
        token = identity.key.sign(message).encode()
        headers = {"Content-Type": "application/jose"}
        server, limit = task.config.server.name, limits.round_status(task)
        await transport.request("PUT", path, audience=server, pieces=[token], headers=headers, limit=limit)
