"""Taking part in rounds, one after the other: a round that fails ends nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from he_client.attempt import Train, attempt
from he_client.client import HushSumClient
from he_client.context import LocalResult, Metrics, TrainingContext
from he_client.published import Model
from he_client.submission import Submission
from he_party.threads import abandonable
from he_protocol.errors import ProblemError
from he_protocol.problems import STALE_UPDATE, UNREACHABLE
from he_protocol.task import Task

WITHIN = 3600.0
"""Seconds that the next round, or a decision, is waited for."""
TRIES = 3
"""How often an update is made again, on a newer model, because the model moved on meanwhile."""
PAUSE_SECONDS = 1.0
"""After a round that was refused at once, and between two looks at one that we sit out."""
log = logging.getLogger("he-client")

Run = Callable[[Callable[[], LocalResult]], Awaitable[LocalResult]]
"""Runs the work of one training without keeping the event loop."""


@dataclass(frozen=True)
class RoundOutcome:
    """One round: what was sent, None for nothing; the version that came of it, None for none; and why not.

    metrics: what the training function said of the last training (`LocalResult`).
    """

    sent: Submission | None
    version: int | None
    refusal: ProblemError | None = None
    metrics: Metrics = field(default_factory=dict)


class _Training:
    """One client's training in one run: what its function is told, and what it said last."""

    def __init__(self, client: HushSumClient, task: Task, train: Train, raise_errors: bool, run: Run) -> None:
        self.metrics: Metrics = {}
        self._about = partial(TrainingContext, task, client=client.name, state={})
        self._attempt = partial(attempt, train, raise_errors=raise_errors)
        self._run = run
        self._round = 0

    def next_round(self) -> None:
        self._round, self.metrics = self._round + 1, {}

    async def __call__(self, model: Model) -> LocalResult:
        context = self._about(version=model.version, round=self._round)
        result = await self._run(partial(self._attempt, context, model.tensors))
        self.metrics = result.metrics
        return result


async def train_rounds(
    client: HushSumClient,
    task: Task,
    train: Train,
    rounds: int,
    *,
    raise_errors: bool = False,
    run: Run = abandonable,
) -> AsyncIterator[RoundOutcome]:
    """Pull the model, train, submit, wait; `rounds` times. Without DP a client with 0 examples sits a round out.

    What the function is told, and its `state` over the rounds of this call: `TrainingContext`. What an earlier run left
    behind is sent first. Raises what no further round would mend, such as an expired
    credential or an exhausted budget. run: how a training is run.
    """
    for left in await client.resume(task):
        try:
            await client.wait(task, left)
        except ProblemError as refusal:
            if not refusal.problem.only_this_round:
                raise
            log.warning("update %s is in no model: %s", left.update_id, refusal)
    training = _Training(client, task, train, raise_errors, run)
    for _ in range(rounds):
        training.next_round()
        sent: Submission | None = None
        try:
            sent = await _submit(client, task, training)
            version = await (_sit_out(client, task) if sent is None else client.wait(task, sent))
        except ProblemError as refusal:
            if not refusal.problem.only_this_round:
                raise
            yield RoundOutcome(sent, None, refusal, training.metrics)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            yield RoundOutcome(sent, version, None, training.metrics)


async def _submit(client: HushSumClient, task: Task, training: _Training) -> Submission | None:
    """None where there is nothing to send. An update on a model that is too old by now is made again on the newest."""
    for tries_left in reversed(range(TRIES)):
        model = await client.pull_model(task)
        result = await training(model)
        if result.examples == 0 and not task.config.privacy.noisy:
            return None
        try:
            return await client.submit_result(task, result, model, within=WITHIN)
        except ProblemError as refusal:
            if refusal.problem != STALE_UPDATE or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


async def _sit_out(client: HushSumClient, task: Task) -> int | None:
    """Let the round that is open now, and is not for us, end."""
    until = time.monotonic() + WITHIN
    (newest, *_) = await client.rounds(task)
    while newest.state not in {"published", "failed"}:
        if time.monotonic() > until:
            raise ProblemError(UNREACHABLE, f"round {newest.round} is still {newest.state} after {WITHIN} s")
        await asyncio.sleep(PAUSE_SECONDS)
        newest = await client.round(task, newest.round)
    return newest.version if newest.state == "published" else None
