"""Committees whose sharing is tested whatever a task may ask for."""

from __future__ import annotations

from he_protocol.sharing import Sharing

BYZANTINE = [(4, 2), (7, 3)]
"""Holders n = 3f+1, threshold t = f+1."""


def sharing_of(holders: int, threshold: int) -> Sharing:
    """Without the bounds of a task's committee."""
    made = object.__new__(Sharing)
    object.__setattr__(made, "holders", holders)
    object.__setattr__(made, "threshold", threshold)
    return made
