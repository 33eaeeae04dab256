"""Who waits for news of a task, within this process. Other processes' news come by polling the database."""

from __future__ import annotations

import asyncio


class Notifier:
    """Wakes everybody who waits for a task."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def notify(self, task: str) -> None:
        """Something changed in a round of this task."""
        for event in self._waiting.get(task, ()):
            event.set()

    def notify_all(self) -> None:
        """Wake everybody: the server is going away."""
        for task in self._waiting:
            self.notify(task)

    async def wait(self, task: str, seconds: float) -> None:
        """Return at the next notification, or after so many seconds."""
        event = asyncio.Event()
        events = self._waiting.setdefault(task, set())
        events.add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            events.discard(event)
            if not events:
                self._waiting.pop(task, None)
