"""Not one of `NAMES`: a target with a bug, which a run has to find and save."""

from __future__ import annotations

SEEDS = [b"good"]


def run(data: bytes) -> None:
    if data.startswith(b"g!"):
        raise ValueError("the bug")
