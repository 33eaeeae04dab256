"""The holder's loop: ask the server of every joined task what waits for us, and open it or refuse."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from math import inf

import structlog

from he_holder.epochs import destroy, due, hpke_path
from he_holder.holder import KeyHolder
from he_holder.opening import Openings
from he_party.http_transport import HttpTransport, RetryPolicy
from he_protocol import documents, paths
from he_protocol.errors import ProblemError, Unavailable
from he_protocol.messages import from_json
from he_protocol.problems import WRONG_STATE
from he_protocol.task import Task

REFUSED_SECONDS = 30.0
"""How long a round is left alone at a stage at which it was refused."""
WAIT_SECONDS = 10
"""How long a server with nothing new may keep the answer back; then we ask again, and see what else is due."""
END_SECONDS = 1.0
"""How often we look whether the epoch is over, however much there is to do."""
LEAST_SECONDS = 0.02
"""Between two questions, whatever the answers are."""

DONE = {"screen": "updates screened", "vote": "voted", "release": "share released"}

log = structlog.get_logger("he-holder")


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
        self._transport = HttpTransport(
            server_url, holder.identity, tls=tls, retry=RetryPolicy(give_up=5.0), clock=holder.clock
        )
        self._openings = Openings(holder, task)
        self._refused: dict[documents.Waiting, float] = {}
        self._pending = documents.PendingOpenings(())
        self._interrupted = False

    async def run(self) -> None:
        """Poll while the epoch lives. A server that cannot be reached, or misbehaves, is logged and asked again."""
        log.info("watching", task=self._task.config.name, server=self._transport.url)
        loop, looked = asyncio.get_running_loop(), -inf
        async with self._transport:
            while True:
                began = loop.time()
                try:
                    if began - looked >= END_SECONDS:
                        if await self._ended():
                            break
                        looked = began
                    news = await self.step(WAIT_SECONDS)
                except ProblemError as refusal:  # the ledger: busy, or on a full disk
                    log.warning("tried again", problem=refusal.problem.slug, detail=str(refusal))
                    news = False
                except Exception as error:  # one task's misfortune is not the others'
                    log.error("unexpected failure; tried again", task=self._task.config.name, error=repr(error)[:500])
                    news = False
                # A server that keeps no answer back, or always has another, is not asked without pause.
                pause = LEAST_SECONDS if news else self._poll
                await asyncio.sleep(max(0.0, began + pause - loop.time()))

    async def _ended(self) -> bool:
        """Destroy the keys when it is time, or when another process has said so; the server is not asked. Also when we
        have left the task."""
        holder, task = self._holder, self._task
        if task.hash in await holder.ledger.left():
            log.info("left", task=task.config.name, epoch=task.config.epoch)
            return True
        if task.hash not in await holder.ledger.destroyed():
            votes = await holder.ledger.votes(task.hash)
            if not due(votes, task.config.rounds.max_openings, self._destroy_after, holder.clock()):
                return False
        await destroy(holder, task)
        if hpke_path(holder, task).exists():
            log.warning("HPKE key kept for another task: old ciphertexts can be opened", task=task.config.name)
        log.info("epoch destroyed", task=task.config.name, epoch=task.config.epoch)
        return True

    async def step(self, wait: int = 0) -> bool:
        """Look once at what waits, for up to `wait` seconds while nothing is new; whether there was news."""
        before = self._pending
        try:
            await self._look(0 if self._interrupted else wait)
        except ProblemError as refusal:
            log.warning("cannot ask the server", problem=refusal.problem.slug, detail=str(refusal))
            return False
        self._interrupted, news = False, self._pending != before
        now = self._holder.clock()
        self._refused = {one: until for one, until in self._refused.items() if now < until}
        for waiting in self._pending.rounds:
            if waiting not in self._refused:
                news |= await self._serve(waiting)
        return news

    async def _look(self, wait: int) -> None:
        """Learn what waits: the server has nothing to say as long as that is what we know already."""
        answer = await self._transport.request(
            "GET",
            paths.openings_path(self._task.id),
            audience=self._task.config.server.name,
            headers={"If-None-Match": self._pending.etag},
            wait=wait,
        )
        if answer.status != 304:
            self._pending = from_json(answer.body, documents.PendingOpenings)

    async def _serve(self, waiting: documents.Waiting) -> bool:
        number = waiting.round
        try:
            stage = await self._openings.serve(number, self._transport)
        except Unavailable as failure:
            self._interrupted = True
            log.warning("round interrupted", round=number, problem=failure.problem.slug, detail=str(failure))
            return False
        except ProblemError as refusal:
            self._refused[waiting] = self._holder.clock() + REFUSED_SECONDS
            if refusal.problem is WRONG_STATE:
                log.info("round went on without us", round=number, stage=waiting.stage)
                return False
            log.error("round refused", round=number, problem=refusal.problem.slug, detail=str(refusal))
            return False
        self._pending = documents.PendingOpenings(tuple(one for one in self._pending.rounds if one != waiting))
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
