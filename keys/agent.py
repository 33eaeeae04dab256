"""The holder's loop: ask the server of every joined task what waits for us, and open it or refuse."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from math import inf

import structlog

from he_client.transport import RetryPolicy, Transport
from he_protocol import api
from he_protocol.problems import WRONG_STATE, Refusal
from he_protocol.task import Task
from keys.epochs import destroy, due, hpke_path
from keys.holder import KeyHolder
from keys.opening import SERVICE_FAILURE, Openings

REFUSED_SECONDS = 30.0
"""How long a round is left alone at a stage at which it was refused."""
QUICK = 16
"""After something was done, the next look comes this many times sooner: others are at work on the same round."""

DONE = {"screen": "updates screened", "vote": "voted", "release": "share released"}

log = structlog.get_logger("he-keys")


class Agent:
    """Serves one task until it is cancelled or the epoch's keys are destroyed; times in seconds."""

    def __init__(
        self,
        holder: KeyHolder,
        task: Task,
        server_url: str,
        *,
        poll_seconds: float,
        destroy_after: float = inf,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._holder = holder
        self._task = task
        self._poll = poll_seconds
        self._destroy_after = destroy_after
        # The next poll is the retry: waiting longer inside one call would only delay other rounds.
        self._transport = Transport(
            server_url, holder.identity, tls=tls, retry=RetryPolicy(give_up=5.0), clock=holder.clock
        )
        self._openings = Openings(holder, task)
        self._refused: dict[api.Waiting, float] = {}

    async def run(self) -> None:
        """Poll while the epoch lives. A server that cannot be reached, or misbehaves, is logged and asked again."""
        log.info("watching", task=self._task.config.name, server=self._transport.url)
        async with self._transport:
            pause = self._poll
            while not await self._ended():
                pause = self._poll / QUICK if await self.step() else min(2 * pause, self._poll)
                await asyncio.sleep(pause)
        log.info("epoch destroyed", task=self._task.config.name, epoch=self._task.config.epoch)

    async def _ended(self) -> bool:
        """Destroy the keys when it is time, or when another process has said so; the server is not asked."""
        holder, task = self._holder, self._task
        if task.hash not in await holder.ledger.destroyed():
            votes = await holder.ledger.votes(task.hash)
            if not due(votes, task.config.max_openings, self._destroy_after, holder.clock()):
                return False
        await destroy(holder, task)
        if hpke_path(holder, task).exists():
            log.warning("HPKE key kept for another task: old ciphertexts can be opened", task=task.config.name)
        return True

    async def step(self) -> bool:
        """Look once at what waits; whether something was done."""
        server = self._task.config.server.name
        try:
            pending = await self._transport.document(
                "GET", api.openings_path(self._task.id), api.PendingOpenings, audience=server
            )
        except Refusal as refusal:
            log.warning("cannot ask the server", problem=refusal.problem.slug, detail=str(refusal))
            return False
        done = False
        for waiting in pending.rounds:
            if self._holder.clock() >= self._refused.get(waiting, 0.0):
                done |= await self._serve(waiting)
        return done

    async def _serve(self, waiting: api.Waiting) -> bool:
        number = waiting.round
        try:
            stage = await self._openings.serve(number, self._transport)
        except Refusal as refusal:
            if refusal.problem.status >= SERVICE_FAILURE:
                log.warning("round interrupted", round=number, problem=refusal.problem.slug, detail=str(refusal))
                return False
            if refusal.problem is WRONG_STATE:
                log.info("round went on without us", round=number)
                return False
            self._refused[waiting] = self._holder.clock() + REFUSED_SECONDS
            log.error("round refused", round=number, problem=refusal.problem.slug, detail=str(refusal))
            return False
        log.info(DONE[stage], task=self._task.config.name, round=number)
        return True


async def serve(holder: KeyHolder, agents: Sequence[Agent]) -> None:
    """Run all agents until cancelled, then close the ledger."""
    try:
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(agent.run())
    finally:
        await holder.ledger.close()
