"""HushSum itself, through the same interface as its peers: one profile per variant."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from math import log2

import numpy as np

from he_bench.peers import Floats, Work
from he_bench.sums import fold_in, sum_layout
from he_bench.world import Update, World
from he_protocol.schemes.scheme import combine


class HushSum:
    """Encrypts with digests and a signed head, as `HushSumClient.encrypt` does, but in memory."""

    library = f"HushSum {version('hushsum')}"

    def __init__(self, work: Work, profile: str) -> None:
        self._world = World(profile, work.update.size, work.clients)
        task = self._world.task
        sharing = task.sharing
        self.setting = (
            f"{profile}, scale 2^{log2(task.config.encryption.scale):g},"
            f" committee {sharing.threshold} of {sharing.holders}"
        )
        self.decrypts = f"{sharing.threshold} of {sharing.holders} key holders, sums only"
        self._update = work.update
        self._runner = asyncio.Runner()
        self._encryptor = self._runner.run(self._world.encryptor())
        self._layout = sum_layout(task)
        self._total = np.zeros((self._layout.rows, self._layout.degree), dtype=np.uint64)
        self._count = 0
        self._sent: Update | None = None

    @property
    def signing(self) -> float:
        return self._world.signing

    def send(self) -> int:
        self._sent = self._runner.run(self._world.update(self._encryptor, self._update))
        return self._sent.size

    def receive(self) -> None:
        assert self._sent is not None
        fold_in(self._total, self._sent.sections[self._world.task.section("sum").name], self._layout)
        self._count += 1

    def mean(self) -> Floats:
        """All updates received must be the one sent last: their key sections are that one's."""
        assert self._sent is not None
        task, released = self._world.task, self._world.released(self._sent, self._count)
        total = self._total.reshape(self._layout.shape)
        opened = combine(task.scheme, total, released, task.length, self._count, task.epoch_id)
        mean: Floats = opened / task.config.encryption.scale / self._count
        return mean


def make(work: Work, variant: str) -> HushSum:
    return HushSum(work, variant)
