"""A deployment of real processes, started by the commands that an operator types."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_client import HushSumClient, Submission
from he_testing.deployment import SECONDS, LocalDeployment
from he_testing.plans import plan
from tests.support.schemes import assert_opens_to

CLIENTS, HOLDERS = 4, 4
TASK = "test-task"
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, dtype=np.float32)}
COLLECT_SECONDS = 8
"""Longer than a server takes to start again on a loaded machine."""
OPENING_SECONDS = 15
"""Longer than a key holder takes to start again on a loaded machine."""


PLAN = {"collect_seconds": COLLECT_SECONDS, "opening_seconds": OPENING_SECONDS}


class Processes(LocalDeployment):
    """The deployment of these tests. changes: fields of the plan that differ from `plan`."""

    def __init__(
        self,
        root: Path,
        scheme: str,
        profile: str,
        environment: Mapping[str, str] | None = None,
        tls: Path | None = None,
        *,
        clients: int = CLIENTS,
        changes: Mapping[str, Any] | None = None,
        model: Mapping[str, npt.NDArray[np.float32]] = MODEL,
        port: int = 0,
    ) -> None:
        super().__init__(
            root,
            plan(**(PLAN | {"scheme": scheme, "profile": profile} | dict(changes or {}))),
            model,
            clients=clients,
            holders=HOLDERS,
            environment={"HUSHSUM_SERVER_LEASE_SECONDS": "1"} | dict(environment or {}),
            tls=tls,
            port=port,
        )


class Round:
    """Updates with known integers, and the one sum that may come of them."""

    def __init__(self, processes: Processes, clients: list[HushSumClient], *, seed: int) -> None:
        self.task = processes.task
        self.clients = clients
        generator = np.random.default_rng(seed)
        self.integers = [generator.integers(-4000, 4000, self.task.length) for _ in clients]
        self.sent: list[Submission] = []

    async def submit(self, *, until: int | None = None) -> None:
        """The next clients' updates, acknowledged: all, or those before number `until`."""
        first = len(self.sent)
        model = await self.clients[0].pull_model(self.task)
        self.sent += await asyncio.gather(
            *(self._submit(at, model.version) for at in range(first, len(self.clients) if until is None else until))
        )

    async def _submit(self, at: int, version: int) -> Submission:
        client, vector = self.clients[at], self.integers[at]
        sealed = await client.encrypt(self.task, lambda start, stop: vector[start:stop], base_version=version)
        return await client.upload(self.task, sealed)

    async def wait(self) -> int:
        """The published version, the same for all; the opened sum is that of the integers."""
        versions = await asyncio.gather(
            *(
                client.wait(self.task, sent, within=SECONDS)
                for client, sent in zip(self.clients, self.sent, strict=False)
            )
        )
        assert len(set(versions)) == 1
        assert len({sent.round for sent in self.sent}) == 1
        opened = await self.clients[0].opened_sum(self.task, self.sent[0].round)
        assert_opens_to(self.task.config.encryption.scheme, opened, self.integers[: len(self.sent)])
        return versions[0]

    async def publish(self) -> int:
        await self.submit()
        return await self.wait()
