"""A lab in a notebook: a whole deployment that lives as long as an object does."""

from __future__ import annotations

import asyncio
import atexit
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from he_client.attempt import Train
from he_client.lab import TASK, InTurn, as_client, together
from he_client.rounds import RoundOutcome, train_rounds
from he_testing.deployment import LocalDeployment
from he_testing.lab_task import Arrays, arrays_of, plan


class Lab:
    """Server, key holders and clients on this machine, with everybody's keys in one folder: never for real data.

    model: a torch module, a dict or list of arrays, or a function that returns one. The other arguments are those of
    `he-server lab init`.

    >>> lab = await Lab(model, clients=6)      # doctest: +SKIP
    >>> await lab.train(fit, rounds=3)         # doctest: +SKIP
    >>> lab.model                              # doctest: +SKIP
    >>> await lab.stop()                       # doctest: +SKIP

    `async with Lab(model) as lab` stops it by itself; so does the end of the process.
    """

    def __init__(
        self,
        model: Any,
        *,
        clients: int = 6,
        holders: int = 4,
        value_range: float = 16.0,
        weight_cap: float | None = None,
        collect_seconds: int = 60,
    ) -> None:
        self.clients = clients
        self.model: Arrays = arrays_of(model)
        """The newest that `train` has seen."""
        self._folder = tempfile.TemporaryDirectory(prefix="hushsum-lab-", ignore_cleanup_errors=True)
        wanted = plan(clients, holders, value_range=value_range, weight_cap=weight_cap, collect_seconds=collect_seconds)
        self._deployment = LocalDeployment(
            Path(self._folder.name), wanted, self.model, clients=clients, holders=holders
        )

    def __await__(self) -> Generator[Any, None, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return await self._start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> Self:
        atexit.register(self._deployment.stop)
        try:
            await asyncio.to_thread(self._deployment.start)
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """End its processes, and remove its folder."""
        await asyncio.to_thread(self._deployment.stop)
        atexit.unregister(self._deployment.stop)
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """Keys, credentials, data and logs (`NAME.log`) of everybody, while it is up."""
        return Path(self._folder.name)

    @property
    def processes(self) -> list[str]:
        """The names of those that run."""
        return [name for name in self._deployment.running if self._deployment.lives(name)]

    @property
    def url(self) -> str:
        """The server's."""
        return self._deployment.url

    async def train(self, function: Train, rounds: int = 1) -> list[RoundOutcome]:
        """Let all clients train so many rounds with one function, as `he-client train --all` does; afterwards `model`
        is the new one.

        A parameter named `client` gets each client's number, from 0. Raises what the function raises. Returns every
        client's outcome of every round, as they ended.
        """
        run, outcomes = InTurn(self.clients), list[RoundOutcome]()

        async def one(number: int) -> None:
            async with self._deployment.client(number + 1) as client:
                task = await client.task(TASK)
                own = as_client(function, number)
                async for outcome in train_rounds(client, task, own, rounds, raise_errors=True, run=run):
                    outcomes.append(outcome)
                if not number:
                    self.model = dict((await client.pull_model(task)).tensors)

        await together(*(one(number) for number in range(self.clients)))
        return outcomes
