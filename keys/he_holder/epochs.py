"""The end of an epoch: its secrets are destroyed, so that an old ciphertext stays closed for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from he_holder.holder import KeyHolder
from he_holder.ledger import VoteRecord
from he_party.keyfile import erase_private
from he_party.transport import Transport
from he_protocol import documents, paths
from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_STATE
from he_protocol.task import Task


async def joined_tasks(holder: KeyHolder) -> list[tuple[Task, str]]:
    """The tasks in the ledger and their servers, verified again against the authority."""
    rows = await holder.ledger.joined()
    return [(Task.from_token(token, holder.identity.authority), url) for token, url in rows]


async def state_of(holder: KeyHolder, task: Task) -> Literal["open", "left", "destroyed", "closed"]:
    """closed: the keys are not here, or belong to another ledger than ours."""
    if task.hash in await holder.ledger.destroyed():
        return "destroyed"
    if task.hash in await holder.ledger.left():
        return "left"
    try:
        await asyncio.to_thread(holder.hpke, task)
    except ProblemError:
        return "closed"
    return "open"


def due(votes: Sequence[VoteRecord], most: int, destroy_after: float, now: float) -> bool:
    """Whether nothing can be opened any more and the last vote is `destroy_after` seconds old.

    Nothing is left when the last number has a vote: a holder that was away has not seen all of those before.

    A server has no say in it: one that called rounds pending for ever would keep the keys alive for ever.
    """
    return bool(votes) and votes[-1].opening >= most and now - max(vote.decided for vote in votes) >= destroy_after


def hpke_path(holder: KeyHolder, task: Task) -> Path:
    """Where this holder's HPKE key of an epoch is; after `destroy` it is there only if another live task needs it."""
    return holder.keyring.path(task.config.committee.holders[holder.index(task)].hpke)


async def secrets_of(holder: KeyHolder, task: Task) -> list[Path]:
    """The files that go with an epoch: its seeds, and its HPKE key unless another live task needs it."""
    ended = {*await holder.ledger.destroyed(), task.hash}
    needed = {
        entry.hpke
        for other, _ in await joined_tasks(holder)
        if other.hash not in ended
        for entry in other.config.committee.holders
    }
    seeds = holder.secret_path(task, "*")
    found = list(seeds.parent.glob(seeds.name))
    if task.config.committee.holders[holder.index(task)].hpke not in needed:
        key = hpke_path(holder, task)
        found += key.parent.glob(f"{key.name}*")  # with what an interrupted write left behind
    return sorted(found)


async def destroy(holder: KeyHolder, task: Task) -> None:
    """End an epoch: first the ledger says so, durably, then the secrets go. Repeating it finishes it."""
    await holder.ledger.destroy(task, holder.clock())
    holder.forget(task)
    for path in await secrets_of(holder, task):
        await asyncio.to_thread(erase_private, path)


async def check_finished(holder: KeyHolder, task: Task, transport: Transport) -> None:
    """Nothing of the epoch waits for us: neither at the server nor in the ledger.

    Raises `wrong-state`, or what the transport raises when the server cannot be asked.
    """
    path = paths.openings_path(task.id)
    asked = await transport.document("GET", path, documents.PendingOpenings, audience=task.config.server.name)
    unsettled = [vote.round for vote in await holder.ledger.votes(task.hash) if vote.settled is None]
    if waiting := sorted({*(waiting.round for waiting in asked.rounds), *unsettled}):
        raise ProblemError(
            WRONG_STATE,
            "openings wait for our share; --force gives them up",
            expected="none",
            got="rounds " + ", ".join(map(str, waiting)),
        )
