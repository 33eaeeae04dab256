"""Requests in flight, and the end of the process: these are finished, and no new ones begun."""

from __future__ import annotations

import asyncio


class Drain:
    """`stopping` is set once the process is to end, `idle` while no request is in flight."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.in_flight = 0

    def enter(self) -> None:
        """A request begins."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request is answered."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()
