"""A key holder that colludes or is broken: what it says to the honest server is not what the rules have it say."""

from __future__ import annotations

import asyncio
from typing import Literal, get_args

from msgspec.structs import replace

from he_holder.holder import KeyHolder
from he_holder.opening import Openings
from he_holder.release import make_share
from he_holder.request import OpeningRequest
from he_holder.schemes import ShareMaker
from he_party.transport import Transport
from he_protocol import documents, paths
from he_protocol.errors import ProblemError
from he_protocol.messages import Exclusion, Screening, ShareVector, Vote
from he_protocol.problems import DIGEST_MISMATCH, MANIFEST_MISMATCH
from he_protocol.task import Task

Manner = Literal["yes", "excludes", "objects", "spoils", "silent"]
"""yes: votes for whatever it is shown. excludes: finds every update useless. objects: refuses every manifest. spoils:
releases wrong shares. All of them vote, and release, without a look at their ledger."""
MANNERS: tuple[Manner, ...] = get_args(Manner)
AHEAD = 10**6
"""Opening number and model version that it claims to have seen."""


class Traitor(Openings):
    def __init__(self, holder: KeyHolder, task: Task, manner: Manner) -> None:
        super().__init__(holder, task)
        self._manner = manner

    async def serve(self, number: int, transport: Transport) -> documents.Stage:
        if self._manner != "objects":
            return await super().serve(number, transport)
        server = self._task.config.server.name
        asked = await transport.document(
            "GET", paths.opening_path(self._task.id, number), documents.Opening, audience=server
        )
        await self._object(number, asked, ProblemError(MANIFEST_MISMATCH, "as if"), transport)
        return asked.stage

    async def _screen(self, request: OpeningRequest, opener: ShareMaker, transport: Transport) -> None:
        if self._manner != "excludes":
            await super()._screen(request, opener, transport)
            return
        useless = tuple(Exclusion(header.update_id, DIGEST_MISMATCH.slug) for header in request.headers)
        number = request.manifest.round
        said = Screening(*self._about(number, request.manifest_hash), AHEAD, AHEAD, useless)
        await self._put(number, said, transport)

    async def _vote(self, request: OpeningRequest, transport: Transport) -> None:
        task, manifest = self._task, request.manifest
        name = self._holder.identity.name
        vote = Vote(task.hash, task.config.epoch, manifest.opening, request.manifest_hash, name)
        await self._put(manifest.round, vote, transport)

    async def _release(self, request: OpeningRequest, opener: ShareMaker, transport: Transport) -> None:
        task, identity, number = self._task, self._holder.identity, request.manifest.round
        sums = await self._add_up(request, opener, transport, None)
        share, vectors = await asyncio.to_thread(make_share, request, identity.name, sums)
        if self._manner == "spoils" and share.vectors:  # one part, with the vector of another one
            first, second = share.vectors[:2]
            wrong = ShareVector(first.bucket, first.subshare, second.sha256)
            share, vectors = replace(share, vectors=(wrong, *share.vectors[1:])), [vectors[1], *vectors[1:]]
        head, path = identity.key.sign(share).encode(), paths.share_path(task.id, number, identity.name)
        await transport.put_frame(path, head, vectors, task.config.server.name)
