"""Collects the evidence: receipts from clients' spools, answers from the server, votes from holders' ledgers."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from math import sqrt

import numpy as np

from he_client.spool import RECEIPT
from he_party.http_transport import HttpTransport
from he_protocol import documents, paths
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import NOT_FOUND
from he_testing.deployment import RETRY
from tests.crash.account import Evidence, RoundEvidence, UpdateEvidence
from tests.crash.submitter import COORDINATES, Coordinates, holding, spool_of, unsent
from tests.crash.world import SCALE, SCHEME, World, recent_rounds
from tests.support.schemes import ERROR_STD


async def collect(world: World) -> Evidence:
    """Everything that the parties have on record; the server and nobody else has to run."""
    updates, waiting = [], []
    for number, name in enumerate(world.clients, 1):
        updates += [update async for update in _updates(world, number)]
        spool = spool_of(world.processes.folder(number), world.processes.task.id)
        waiting += [f"{update_id} of {name}" for update_id in sorted(unsent(spool))]
    manifests, refusals = [], []
    for holder in world.processes.holders:
        with closing(sqlite3.connect(world.processes.root / holder / "ledger.db")) as ledger:
            accepted = ledger.execute("SELECT round, hex(manifest_hash) FROM votes")
            manifests += [(holder, number, manifest) for number, manifest in accepted]
            refused = ledger.execute("SELECT round, problem, detail FROM refusals")
            refusals += [f"{holder}, round {number}: {problem}: {detail}" for number, problem, detail in refused]
    return Evidence(
        updates=tuple(updates),
        rounds=tuple([round_ async for round_ in _rounds(world)]),
        unsent=tuple(waiting),
        manifests=tuple(manifests),
        refusals=tuple(refusals),
        orphans=tuple(world.leftovers()),
    )


async def _updates(world: World, number: int) -> AsyncIterator[UpdateEvidence]:
    """One client's acknowledged updates."""
    task, folder = world.processes.task, world.processes.folder(number)
    coordinates = Coordinates(folder / COORDINATES).of
    async with HttpTransport(world.processes.url, world.processes.identity(number), retry=RETRY) as transport:
        for update_id in sorted(holding(spool_of(folder, task.id), RECEIPT)):
            path = paths.update_path(task.id, update_id)
            try:
                status = await transport.document("GET", path, documents.UpdateStatus, audience=task.config.server.name)
            except ProblemError as refusal:
                if refusal.problem is not NOT_FOUND:
                    raise
                yield UpdateEvidence(update_id, coordinates[update_id], 0, None, "")
                continue
            failure = status.failure.type if status.failure else ""
            yield UpdateEvidence(update_id, coordinates[update_id], status.round, status.state, failure)


async def _rounds(world: World) -> AsyncIterator[RoundEvidence]:
    """Every round that there ever was, with its sum decoded."""
    task = world.processes.task
    async with HttpTransport(world.processes.url, world.processes.identity(1), retry=RETRY) as transport:
        newest = (await recent_rounds(transport, task.config.server.name, task.id))[0].round
    async with world.processes.client(1) as client:
        for number in range(1, newest + 1):
            status = await client.round(task, number)
            ones: dict[int, int] = {}
            error = 0.0
            if status.state == "published":
                ones, error = decode_ones(await client.opened_sum(task, number), status.updates)
            failure = status.failure.type if status.failure else ""
            yield RoundEvidence(number, status.state, status.updates, status.version, failure, ones, error)


def decode_ones(total: Integers, updates: int) -> tuple[dict[int, int], float]:
    """How often each coordinate is in a sum of so many one-hot updates; the largest error, in standard deviations."""
    counts = np.rint(total / SCALE).astype(np.int64)
    error = np.abs(total - counts * SCALE).max() / (ERROR_STD[SCHEME[0]] * sqrt(updates))
    return {int(at): int(counts[at]) for at in np.flatnonzero(counts)}, float(error)
