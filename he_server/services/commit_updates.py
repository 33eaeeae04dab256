"""Commits checked updates into open rounds; concurrent updates of one task share a transaction.

Small updates share their blobs as well: a file for each, made durable and deleted on its own, would cost more than
all other work of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from he_protocol.errors import ProblemError
from he_protocol.problems import REQUEST_TIMEOUT
from he_protocol.task import Task
from he_server.blobs.keys import fresh, key_blob, update_blob
from he_server.blobs.store import BlobStore
from he_server.rules.records import Accepted
from he_server.services.group_commit import GroupCommit
from he_server.services.threads import Threads
from he_server.store.updates import NewUpdate, UpdateStore


class UpdateCommitter:
    """Commits accepted updates in groups. `clock` gives Unix seconds."""

    def __init__(self, store: UpdateStore, blobs: BlobStore, threads: Threads, clock: Callable[[], float]) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._clock = clock
        self._groups: dict[str, GroupCommit[tuple[NewUpdate, float], Accepted]] = {}

    async def __call__(self, task: Task, offered: NewUpdate) -> Accepted:
        """Raises `update-id-reused`, `already-in-round` or `stale-update`."""
        if task.id not in self._groups:
            self._groups[task.id] = GroupCommit(partial(self._accept, task))
        return await self._groups[task.id]((offered, self._clock()))

    async def _accept(self, task: Task, offers: Sequence[tuple[NewUpdate, float]]) -> Sequence[Accepted | ProblemError]:
        return await self._store.accept(task, offers, self._write_blobs)

    async def _write_blobs(self, offers: Sequence[NewUpdate]) -> str:
        return await self._threads.run(write_shared_blobs, self._blobs, offers)


def write_shared_blobs(blobs: BlobStore, offers: Sequence[NewUpdate]) -> str:
    """Write the sections of offers without a blob into one for each role; durable when it returns their name. Blocks.

    Raises `request-timeout` when the blob of another one is gone.
    """
    name, small = fresh(), [offered for offered in offers if not offered.blob]
    alone = [offered.blob for offered in offers if offered.blob]
    blobs.check_kept([role(blob) for blob in alone for role in (update_blob, key_blob)], REQUEST_TIMEOUT)
    if not small:
        return ""
    with blobs.writer() as sums, blobs.writer() as keys:
        for offered in small:
            sums.write(offered.sections["sum"])
            keys.write(offered.sections["key"])
        sums.commit(update_blob(name))
        keys.commit(key_blob(name))
    return name
