"""Clocks that tests move."""

from __future__ import annotations

START = 1_800_000_000.0


class FakeClock:
    """Unix seconds that pass only when a test says so."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
