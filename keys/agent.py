"""The holder's loop: ask the server of every joined task what waits for us, and open it or refuse."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import structlog

from he_client.transport import RetryPolicy, Transport
from he_protocol import api
from he_protocol.problems import WRONG_STATE, Refusal
from he_protocol.task import Task
from keys.holder import SERVICE_FAILURE, KeyHolder

REFUSED_SECONDS = 30.0
"""How long a refused round is left alone before it is judged again."""

log = structlog.get_logger("he-keys")


async def joined_tasks(holder: KeyHolder) -> list[tuple[Task, str]]:
    """The tasks in the ledger and their servers, verified again against the authority."""
    rows = await holder.ledger.joined()
    return [(Task.from_token(token, holder.identity.authority), url) for token, url in rows]


class Agent:
    """Serves one task until it is cancelled."""

    def __init__(
        self, holder: KeyHolder, task: Task, server_url: str, *, poll_seconds: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._holder = holder
        self._task = task
        self._poll = poll_seconds
        # The next poll is the retry: waiting longer inside one call would only delay other rounds.
        self._transport = Transport(server_url, holder.identity, tls=tls, retry=RetryPolicy(give_up=5.0))
        self._refused: dict[int, float] = {}

    async def run(self) -> None:
        """Poll for ever. A server that cannot be reached, or that misbehaves, is logged and asked again."""
        log.info("watching", task=self._task.config.name, server=self._transport.url)
        async with self._transport:
            while True:
                await self.step()
                await asyncio.sleep(self._poll)

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
            await self._holder.open_round(self._task, number, self._transport)
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


async def serve(holder: KeyHolder, agents: Sequence[Agent]) -> None:
    """Run all agents until cancelled, then close the ledger."""
    try:
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(agent.run())
    finally:
        await holder.ledger.close()
