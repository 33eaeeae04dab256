"""A synchronous face of `HushSumClient` for scripts: the same methods, run on a loop of its own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from he_client.attempt import Train
from he_client.client import HushSumClient, Submission
from he_client.floors import Floors
from he_client.published import Model
from he_client.tensors import Tensors
from he_party.identity import Identity
from he_protocol.task import Task

T = TypeVar("T")


class SyncClient:
    """Use as a context manager, outside of any running event loop.

    >>> with SyncClient(url, Identity.load(path), state_dir=path) as client:  # doctest: +SKIP
    ...     task = client.task("keyboard")
    """

    def __init__(
        self,
        url: str,
        identity: Identity,
        *,
        state_dir: Path,
        floors: Floors | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._client = HushSumClient(url, identity, state_dir=state_dir, floors=floors, tls=tls)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._run(self._client.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._run(self._client.__aexit__(kind, error, tb))
        self._runner.close()

    def task(self, name: str) -> Task:
        return self._run(self._client.task(name))

    def pull_model(self, task: Task) -> Model:
        return self._run(self._client.pull_model(task))

    def submit(
        self, task: Task, update: Tensors, *, base_version: int, examples: float | None = None, within: float = 0.0
    ) -> Submission:
        return self._run(self._client.submit(task, update, base_version=base_version, examples=examples, within=within))

    def submit_from(
        self, task: Task, train: Train, model: Model, *, within: float = 0.0, raise_errors: bool = False
    ) -> Submission:
        return self._run(self._client.submit_from(task, train, model, within=within, raise_errors=raise_errors))

    def resume(self, task: Task) -> list[Submission]:
        return self._run(self._client.resume(task))

    def wait(self, task: Task, sent: Submission, *, within: float = 3600.0) -> int:
        return self._run(self._client.wait(task, sent, within=within))

    def privacy_spent(self, task: Task) -> float:
        return self._client.privacy_spent(task)

    def privacy_planned(self, task: Task) -> float:
        return self._client.privacy_planned(task)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)
