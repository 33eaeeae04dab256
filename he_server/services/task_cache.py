"""Tasks by their hash, each read and verified once."""

from __future__ import annotations

from he_protocol.task import Task
from he_server.blobs.vectors import load_kernels, sum_layout
from he_server.services.threads import Threads
from he_server.store.tasks import TaskStore


class TaskCache:
    """Tasks of the authority with this public key."""

    def __init__(self, store: TaskStore, authority: bytes, threads: Threads) -> None:
        self._store = store
        self._authority = authority
        self._threads = threads
        self._tasks: dict[str, Task] = {}

    async def get(self, task_id: str) -> Task:
        """A task by its hash in hex; the first time it is verified again, and what its uploads need is loaded.

        Raises `not-found`.
        """
        found = self._tasks.get(task_id)
        if found is None:
            record = await self._store.get(task_id)
            found = Task.from_token(record.token, self._authority)
            await self._threads.run(load_kernels, sum_layout(found))
            self._tasks[task_id] = found
        return found
