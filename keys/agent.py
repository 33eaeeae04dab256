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
from keys.holder import SERVICE_FAILURE, KeyHolder

REFUSED_SECONDS = 30.0
"""How long a refused round is left alone before it is judged again."""

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
        self._transport = Transport(server_url, holder.identity, tls=tls, retry=RetryPolicy(give_up=5.0))
        self._refused: dict[int, float] = {}

    async def run(self) -> None:
        """Poll while the epoch lives. A server that cannot be reached, or misbehaves, is logged and asked again."""
        log.info("watching", task=self._task.config.name, server=self._transport.url)
        async with self._transport:
            while not await self._ended():
                await self.step()
                await asyncio.sleep(self._poll)
        log.info("epoch destroyed", task=self._task.config.name, epoch=self._task.config.epoch)

    async def _ended(self) -> bool:
        """Destroy the keys when it is time, or when another process has said so; the server is not asked."""
        holder, task = self._holder, self._task
        if task.hash not in await holder.ledger.destroyed():
            openings = await holder.ledger.openings(task.hash)
            if not due(openings, task.config.max_openings, self._destroy_after, holder.clock()):
                return False
        await destroy(holder, task)
        if hpke_path(holder, task).exists():
            log.warning("HPKE key kept for another task: old ciphertexts can be opened", task=task.config.name)
        return True

    async def step(self) -> None:
        """Look once at what waits."""
        server = self._task.config.server.name
        try:
            pending = await self._transport.document(
                "GET", api.openings_path(self._task.id), api.PendingOpenings, audience=server
            )
        except Refusal as refusal:
            log.warning("cannot ask the server", problem=refusal.problem.slug, detail=str(refusal))
            return
        for number in pending.rounds:
            if self._holder.clock() >= self._refused.get(number, 0.0):
                await self._open(number)

    async def _open(self, number: int) -> None:
        try:
            share = await self._holder.open_round(self._task, number, self._transport)
        except Refusal as refusal:
            if refusal.problem.status >= SERVICE_FAILURE:
                log.warning("round interrupted", round=number, problem=refusal.problem.slug, detail=str(refusal))
                return
            self._refused[number] = self._holder.clock() + REFUSED_SECONDS
            if refusal.problem is WRONG_STATE:
                log.info("round was opened without us", round=number)
            else:
                log.error("round refused", round=number, problem=refusal.problem.slug, detail=str(refusal))
        else:
            log.info("share released", task=self._task.config.name, round=number)
            for failed in share.failed:
                update, problem = failed.update_id.hex(), failed.problem
                log.warning("bucket not opened", round=number, bucket=failed.bucket, update=update, problem=problem)


async def serve(holder: KeyHolder, agents: Sequence[Agent]) -> None:
    """Run all agents until cancelled, then close the ledger."""
    try:
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(agent.run())
    finally:
        await holder.ledger.close()
