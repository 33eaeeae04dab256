"""News of tasks, for those who wait for it: event streams, key holders, and the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from he_protocol.documents import RoundStatus, Waiting
from he_protocol.task import Task
from he_server.services.notifier import Notifier
from he_server.services.shared_read import SharedRead
from he_server.services.streams import HEARTBEAT_SECONDS, Event, Streams, changes
from he_server.services.task_cache import TaskCache
from he_server.store import Store


class News:
    """`events` are streams of rounds, `waiting` key holders that wait to be asked; `due` wakes the worker."""

    def __init__(self, store: Store, tasks: TaskCache, most: int, of_party: int) -> None:
        """`most` listeners of each kind, and `of_party` of one party."""
        self._store = store
        self._tasks = tasks
        self._changes, self._answers = Notifier(), Notifier()
        self._reads: dict[str, SharedRead[dict[str, tuple[Waiting, ...]]]] = {}
        self.due = asyncio.Event()
        self.events = Streams(most, of_party, self._changes, self._events)
        self.waiting = Streams(most, of_party, self._answers, self._waiting, pause=0.0)

    def notify(self, task_id: str) -> None:
        """Something changed in a round: event streams look again."""
        self._changes.notify(task_id)

    def heard(self, task_id: str) -> None:
        """A key holder answered or a round's state changed: wake key holders and the worker, too."""
        self.notify(task_id)
        self._answers.notify(task_id)
        self.due.set()

    async def pending(self, task: Task) -> dict[str, tuple[Waiting, ...]]:
        """What waits for each of a task's key holders now. They all ask at once when there is news."""
        read = self._reads.setdefault(task.id, SharedRead(partial(self._store.answers.waiting, task)))
        return await read()

    async def changes(self, task: Task) -> AsyncIterator[RoundStatus]:
        """`he_party.events.RoundEvents`, for what runs in this process. Raises `too-many-streams`."""
        with self.events.listening(task.id, b"") as watch:
            async for event in changes(watch, HEARTBEAT_SECONDS):
                if event is not None:
                    yield event.status

    def end(self) -> None:
        """The server is stopping: end all listeners."""
        self.events.end()
        self.waiting.end()

    async def _events(self, task_id: str) -> tuple[Event, ...]:
        """A task's newest rounds, newest first."""
        task = await self._tasks.get(task_id)
        found = await self._store.answers.statuses(task, await self._store.rounds.recent(task_id))
        return tuple(Event.of(status) for status in found)

    async def _waiting(self, task_id: str) -> dict[str, tuple[Waiting, ...]]:
        """The same, for the look on behalf of all who wait."""
        return await self.pending(await self._tasks.get(task_id))
