"""Which of a server's tasks is the one that was asked for: by what the authority signed, never by labels beside it.

A name asks for a `Job`, and gets the task of its newest epoch. `choose` is pure; `TaskMemory` is the file in which a
device keeps the newest epoch that it has seen of every name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from he_party.files import private_directory, write_durably
from he_party.locks import locked
from he_protocol import documents
from he_protocol.config import looks_like_hash
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import fingerprint
from he_protocol.messages import Count, Digest, Message, Name, from_json, to_json
from he_protocol.problems import AMBIGUOUS_TASK, NOT_FOUND, OLD_EPOCH
from he_protocol.task import Task

MEMORY_FILE = "epochs.json"
MEMORY_LIMIT = 1 << 20

log = logging.getLogger("he-client")


class SeenEpoch(Message, frozen=True):
    """The newest epoch that a device has seen of a name, and the task that it was."""

    epoch: Count
    task: Digest


class SeenName(Message, frozen=True):
    """One line of the file. `authority` is the fingerprint of its key: another authority's names are others."""

    authority: str
    name: Name
    seen: SeenEpoch


class SeenNames(Message, frozen=True):
    """The file."""

    names: tuple[SeenName, ...]


Seen = Mapping[str, SeenEpoch]
"""By name, for one authority."""
NOTHING: Seen = MappingProxyType({})


@dataclass(frozen=True)
class Job:
    """One training effort: the tasks of one name, each of which is an epoch."""

    name: str
    tasks: tuple[Task, ...]

    def newest(self, before: SeenEpoch | None) -> Task:
        """The task of the newest epoch, given the newest that this device has seen.

        It is never older than that, and of one epoch only the task that was seen first is taken; another one has to be
        named by its hash, which leaves no choice to the server. Raises `old-epoch` or `ambiguous-task`.
        """
        epoch = max(task.config.epoch for task in self.tasks)
        hashes = {task.hash: task for task in self.tasks if task.config.epoch == epoch}
        if before is not None and epoch < before.epoch:
            raise ProblemError(
                OLD_EPOCH, f"task {self.name!r}", expected=f"epoch {before.epoch} or later", got=f"epoch {epoch}"
            )
        if before is not None and epoch == before.epoch and before.task in hashes:
            return hashes[before.task]
        if len(hashes) > 1 or (before is not None and epoch == before.epoch):
            raise ProblemError(
                AMBIGUOUS_TASK,
                f"epoch {epoch} of {self.name!r} is another task than before, or several: ask for its hash",
                expected=before.task.hex() if before is not None else "one task",
                got=", ".join(sorted(known.hex() for known in hashes)),
            )
        return next(iter(hashes.values()))


@dataclass(frozen=True)
class Listed:
    """A server's list, read: the tasks that verify, and why each of the others does not."""

    tasks: tuple[Task, ...]
    refused: tuple[tuple[documents.TaskStatus, ProblemError], ...]

    def job(self, name: str) -> Job:
        """The job of this name; without tasks if there is none."""
        return Job(name, tuple(task for task in self.tasks if task.config.name == name))


def read(statuses: Iterable[documents.TaskStatus], authority: bytes) -> Listed:
    """Verify every listed configuration: one that does not verify does not affect the others."""
    tasks, refused = [], []
    for status in statuses:
        try:
            tasks.append(Task.from_token(status.config, authority))
        except ProblemError as refusal:
            refused.append((status, refusal))
    return Listed(tuple(tasks), tuple(refused))


def choose(listed: Listed, wanted: str, seen: Seen = NOTHING) -> Task:
    """The task that was asked for by its hash, or the newest epoch of the job that was asked for by its name.

    64 hex digits are always a hash. Raises `not-found`, why the task that was labelled so does not verify, or what
    `Job.newest` raises.
    """
    if looks_like_hash(wanted):
        found = [task for task in listed.tasks if task.id == wanted]
        return found[0] if found else _missing(listed, wanted)
    job = listed.job(wanted)
    return job.newest(seen.get(wanted)) if job.tasks else _missing(listed, wanted)


def learn(seen: Seen, task: Task) -> Seen:
    """What is known of names after `task` was chosen: epochs never go back.

    A task of the same epoch takes the place of the one before: `choose` returns it only when it is named by its hash.
    """
    before = seen.get(task.config.name)
    if before is not None and before.epoch > task.config.epoch:
        return seen
    return {**seen, task.config.name: SeenEpoch(task.config.epoch, task.hash)}


def _missing(listed: Listed, wanted: str) -> Task:
    for status, refusal in listed.refused:
        if wanted in {status.name, status.task}:
            raise refusal
    names = ", ".join(f"{task.config.name} ({task.id})" for task in listed.tasks)
    raise ProblemError(NOT_FOUND, f"the server has no task {wanted!r}", expected=names)


class TaskMemory:
    """The newest epoch seen of every name under one authority, in a file that is replaced as a whole, durably."""

    def __init__(self, path: Path, authority: bytes) -> None:
        self._path = path
        self._authority = fingerprint(authority)

    def seen(self) -> Seen:
        """Raises what `from_json` raises for a file that was changed: it is not taken for an empty one."""
        return {line.name: line.seen for line in self._read() if line.authority == self._authority}

    def learn(self, task: Task) -> None:
        """Keep what `learn` says, before the task is used."""
        private_directory(self._path.parent)
        with locked(self._path.with_suffix(".lock")):  # other processes of this device learn too
            after = learn(before := self.seen(), task)
            if after == before:
                return
            others = [line for line in self._read() if line.authority != self._authority]
            own = [SeenName(self._authority, name, seen) for name, seen in after.items()]
            write_durably(self._path, to_json(SeenNames((*others, *own))))

    def _read(self) -> tuple[SeenName, ...]:
        if not self._path.exists():
            return ()
        return from_json(self._path.read_bytes(), SeenNames, limit=MEMORY_LIMIT).names


def log_refused(listed: Listed) -> None:
    """One line for what a list had that does not verify, however much it was."""
    if listed.refused:
        status, refusal = listed.refused[0]
        log.warning(
            "%d listed tasks do not verify, the first is %r: %s", len(listed.refused), status.name[:64], refusal
        )
