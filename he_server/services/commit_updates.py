"""Putting checked updates into open rounds: those of one task that come together share a transaction.

Small ones share their blobs as well. A file for each of thousands of them, made durable and deleted again on its
own, would cost more than everything else that the server does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from he_protocol.errors import ProblemError
from he_protocol.problems import REQUEST_TIMEOUT
from he_protocol.task import Task
from he_server.blobs.keys import fresh, key_blob, update_blob
from he_server.blobs.local import Blobs
from he_server.rules.records import Accepted
from he_server.services.group_commit import Grouped
from he_server.store import Store
from he_server.store.updates import Keep, NewUpdate


class Acceptance:
    """The way of all updates into the database. `clock` gives Unix seconds; `keep` makes small ones durable."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        keep: Keep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keep = keep
        self._groups: dict[str, Grouped[tuple[NewUpdate, float], Accepted]] = {}

    async def __call__(self, task: Task, offered: NewUpdate) -> Accepted:
        """Raises `update-id-reused`, `already-in-round` or `stale-update`."""
        if task.id not in self._groups:
            self._groups[task.id] = Grouped(partial(self._accept, task))
        return await self._groups[task.id]((offered, self._clock()))

    async def _accept(self, task: Task, offers: Sequence[tuple[NewUpdate, float]]) -> Sequence[Accepted | ProblemError]:
        return await self._store.accept_updates(task, offers, self._keep)


def keep_together(blobs: Blobs, offers: Sequence[NewUpdate]) -> str:
    """Write the parts of offers without a blob into one for each role; durable when it returns their name. Blocks.

    Raises `request-timeout` when the blob of another one is gone.
    """
    name, together = fresh(), [offered for offered in offers if not offered.blob]
    alone = [offered.blob for offered in offers if offered.blob]
    blobs.check_kept([role(blob) for blob in alone for role in (update_blob, key_blob)], REQUEST_TIMEOUT)
    if not together:
        return ""
    with blobs.writer(update_blob(name)) as sums, blobs.writer(key_blob(name)) as keys:
        for offered in together:
            sums.write(offered.parts["sum"])
            keys.write(offered.parts["key"])
        sums.commit()
        keys.commit()
    return name
