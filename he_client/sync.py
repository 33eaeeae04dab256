"""A synchronous face of `HushSumClient` for scripts and notebooks: the same methods, on a loop of its own."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from he_client.attempt import Train
from he_client.client import HushSumClient
from he_client.floors import Floors
from he_client.published import Model
from he_client.spool import SpooledUpdate
from he_client.submission import Submission
from he_client.tensors import Tensors
from he_party.identity import Identity
from he_protocol.task import Task

T = TypeVar("T")


class SyncClient:
    """Use as a context manager; inside of a running event loop, too, and in a process that was forked off.

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
        self._make = partial(HushSumClient, url, identity, state_dir=state_dir, floors=floors, tls=tls)
        self._process = 0
        self._left: list[HushSumClient] = []
        """Of the process that this one was forked off: what is theirs is neither used nor closed here."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process != os.getpid():
            return
        self._run(self._client.__aexit__(kind, error, tb))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._process = 0

    def _start(self) -> None:
        self._client, self._loop = self._make(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hushsum", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        self._run(self._client.__aenter__())

    def task(self, name: str) -> Task:
        return self._run(self._ours().task(name))

    def pull_model(self, task: Task) -> Model:
        return self._run(self._ours().pull_model(task))

    def submit(
        self,
        task: Task,
        update: Tensors,
        *,
        base_version: int,
        examples: float | None = None,
        metrics: Mapping[str, Any] = MappingProxyType({}),
        within: float = 0.0,
    ) -> Submission:
        sending = self._ours().submit(
            task, update, base_version=base_version, examples=examples, metrics=metrics, within=within
        )
        return self._run(sending)

    def submit_from(
        self, task: Task, train: Train, model: Model, *, within: float = 0.0, raise_errors: bool = False
    ) -> Submission:
        return self._run(self._ours().submit_from(task, train, model, within=within, raise_errors=raise_errors))

    def resume(self, task: Task) -> list[Submission]:
        return self._run(self._ours().resume(task))

    def updates(self, task: Task) -> list[SpooledUpdate]:
        return self._ours().updates(task)

    def drop(self, task: Task, update_id: str) -> None:
        self._ours().drop(task, update_id)

    def wait(self, task: Task, sent: Submission | str, *, within: float = 3600.0) -> int:
        return self._run(self._ours().wait(task, sent, within=within))

    def privacy_spent(self, task: Task) -> float:
        return self._ours().privacy_spent(task)

    def privacy_planned(self, task: Task) -> float:
        return self._ours().privacy_planned(task)

    def _ours(self) -> HushSumClient:
        """The client of this process: threads and connections do not follow into one that is forked off."""
        if not self._process:
            raise RuntimeError("use the client as a context manager: with SyncClient(...) as client")
        if self._process != os.getpid():
            self._left.append(self._client)
            self._start()
        return self._client

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()  # Ctrl-C ends what it was about
            raise
