"""Federated averaging in the clear: float32 bytes, added up in float64."""

from __future__ import annotations

import numpy as np

from he_bench.peers import Floats, Work


class Plain:
    """No protection at all: the yardstick."""

    signing = 0.0

    library = f"numpy {np.__version__}"
    setting = "float32"
    decrypts = "the server reads every update"

    def __init__(self, work: Work) -> None:
        self._update = work.update
        self._total = np.zeros(work.update.size)
        self._count = 0
        self._message = b""

    def send(self) -> int:
        self._message = self._update.tobytes()
        return len(self._message)

    def receive(self) -> None:
        self._total += np.frombuffer(self._message, dtype=np.float32)
        self._count += 1

    def mean(self) -> Floats:
        return self._total / self._count


def make(work: Work, variant: str) -> Plain:
    return Plain(work)
