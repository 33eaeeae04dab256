"""Notifies waiters for a task within this process. News of other processes comes by polling the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Notifier:
    """Wakes all waiters for a task."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def notify(self, task: str) -> None:
        """Something changed in a round of this task."""
        for event in self._waiting.get(task, ()):
            event.set()

    @contextmanager
    def listening(self, task: str) -> Iterator[asyncio.Event]:
        """Around waiting for a task: an event that is set at every notification."""
        event = asyncio.Event()
        events = self._waiting.setdefault(task, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events:
                self._waiting.pop(task, None)
