"""A client that submits one-hot updates until its folder says stop. It is run as a program, and killed as one.

No two of its updates set the same coordinate, in this life or another: whatever is lost or counted
twice shows in the opened sums.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path

import numpy as np

from he_client import HushSumClient, Identity, Submission
from he_client.spool import HEAD, RECEIPT
from he_client.tensors import Tensors
from he_party.http_transport import RetryPolicy
from he_protocol.errors import ProblemError
from he_protocol.problems import ALREADY_IN_ROUND, REPEATED_BASE, UNREACHABLE
from he_protocol.task import Task

STATE = "state"
STOP = "stop"
COORDINATES = "coordinates.json"
TENSOR = "w"
RETRY = RetryPolicy(first=0.05, longest=0.3, give_up=60.0)
PAUSE_SECONDS = 0.2
DECISION_SECONDS = 2.0
"""How long the round's decision is waited for before the stop is looked for again."""

log = logging.getLogger("submitter")


class Coordinates:
    """Hands out first, first + step, ... and remembers which update got which.

    A coordinate is reserved before its update is sealed: after a kill in between, the one sealed
    update without a coordinate is the one that the last reservation was for.
    """

    def __init__(self, path: Path, first: int = 0, step: int = 1) -> None:
        self._path = path
        self._step = step
        self._next = first
        self.of: dict[str, int] = {}
        if path.exists():
            self._next, self.of = json.loads(path.read_text())

    def reserve(self) -> int:
        """The next coordinate."""
        coordinate = self._next
        self._next += self._step
        self._save()
        return coordinate

    def settle(self, sealed: set[str]) -> None:
        """Give the coordinate that was reserved last to the encrypted update that has none yet."""
        for update_id in sealed - self.of.keys():
            self.of[update_id] = self._next - self._step
            self._save()

    def _save(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps([self._next, self.of]))
        partial.replace(self._path)


def spool_of(folder: Path, task_id: str) -> Path:
    """Where a client keeps what it sealed for a task: one folder per update."""
    return folder / STATE / "updates" / task_id


def holding(spool: Path, file: str) -> set[str]:
    """Ids of the updates in a spool that have this file."""
    return {path.parent.name for path in spool.glob(f"*/{file}")}


def unsent(spool: Path) -> set[str]:
    """Ids of the updates that are sealed and have no receipt."""
    return holding(spool, HEAD) - holding(spool, RECEIPT)


async def submit_until_stopped(url: str, folder: Path, name: str, first: int, step: int) -> None:
    """Updates, one after the other; what an earlier life left is sent first. Returns with nothing unsent.

    `resume` is content when an update has to wait, because the open round has one of this client already. Nothing
    more is sealed meanwhile: as every round takes one, what piled up in a long round would take many to go.
    The plan has no noise, so each update needs a model version that no undecided or published one was for. After a
    restart the server says whether there is one (`repeated-base`).
    """
    coordinates = Coordinates(folder / COORDINATES, first, step)
    async with HushSumClient(url, Identity.load(folder), state_dir=folder / STATE, retry=RETRY) as client:
        task = await client.task(name)
        spool = spool_of(folder, task.id)
        while True:
            coordinates.settle(holding(spool, HEAD))
            try:
                await client.resume(task)
                if unsent(spool):
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                if (folder / STOP).exists():
                    log.info("nothing is unsent")
                    return
                model = await client.pull_model(task)
                update = one_hot(task.length, coordinates.reserve())
                sent = await client.submit(task, update, base_version=model.version)
                log.info("update %s is in round %d", sent.update_id, sent.round)
            except ProblemError as refusal:
                if refusal.problem not in {ALREADY_IN_ROUND, REPEATED_BASE, UNREACHABLE}:
                    raise
                log.info("again: %s", refusal)
                await asyncio.sleep(DECISION_SECONDS if refusal.problem is REPEATED_BASE else PAUSE_SECONDS)
                continue
            await _decided(client, task, sent, folder / STOP)


async def _decided(client: HushSumClient, task: Task, sent: Submission, stop: Path) -> None:
    """Returns once the update is in a sum, or in none, or the folder says stop."""
    while True:
        try:
            await client.wait(task, sent, within=DECISION_SECONDS)
            return
        except ProblemError as refusal:  # a round that failed or takes its time: the account looks at it
            log.info("not waited for: %s", refusal)
            if refusal.problem is not UNREACHABLE or stop.exists():
                return


def one_hot(length: int, coordinate: int) -> Tensors:
    """1 at the coordinate, 0 elsewhere. Raises IndexError when the model has no such coordinate."""
    vector = np.zeros(length, dtype=np.float32)
    vector[coordinate] = 1.0
    return {TENSOR: vector}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("task")
    parser.add_argument("first", type=int)
    parser.add_argument("step", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(submit_until_stopped(given.url, given.folder, given.task, given.first, given.step))
