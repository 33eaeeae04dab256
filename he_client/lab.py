"""A lab: a whole deployment in one folder, for trying out. What its clients need of it, and how they train together."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from he_party.locks import locked
from he_party.threads import abandonable
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

MARK, URL_FILE, MODEL_FILE = "LAB", "url", "model.safetensors"
TASK = "lab"
"""The name of a lab's task."""
WARNING = "everybody's keys lie in this one folder: never for real data"
"""What the mark says."""
LOOK_SECONDS = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """The folder of a lab: `open` checks that it is one."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Lab:
        """Raises `bad-settings` for any other folder: nobody's real keys are taken for a lab's."""
        if not os.access(root / MARK, os.R_OK):
            raise ProblemError(BAD_SETTINGS, f"{root} is no lab; 'he-server lab init' makes one")
        return cls(root)

    @property
    def warning(self) -> str:
        """The line that every start of something in the lab prints."""
        return f"lab {self.root}: {WARNING}"

    @property
    def model(self) -> Path:
        """Where `he-client train` saves the newest model."""
        return self.root / MODEL_FILE

    @property
    def clients(self) -> list[Path]:
        """The data directories of its clients, in their order."""
        return sorted(self.root.glob("client-*"), key=lambda folder: (len(folder.name), folder.name))

    def client(self, number: int) -> Path:
        """The data directory of a client, counted from 1. Raises `bad-settings`."""
        if not 1 <= number <= len(self.clients):
            raise ProblemError(BAD_SETTINGS, "--client", expected=f"1 to {len(self.clients)}", got=number)
        return self.clients[number - 1]

    def url(self) -> str:
        """Where its server listens, once it does if the lab is starting. Raises `bad-settings` while it is not up."""
        while self._is_held():
            with suppress(FileNotFoundError):
                return (self.root / URL_FILE).read_text().strip()
            time.sleep(LOOK_SECONDS)
        (self.root / URL_FILE).unlink(missing_ok=True)  # of a lab that was killed
        raise ProblemError(BAD_SETTINGS, f"the lab is not up; 'he-server lab up {self.root}' in another terminal")

    def _is_held(self) -> bool:
        try:
            with locked(self.root / MARK, shared=True, wait=False):
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the lab is up. Raises `bad-settings` when it is already."""
        try:
            with locked(self.root / MARK, wait=False):
                yield
        except BlockingIOError:
            raise ProblemError(BAD_SETTINGS, f"the lab {self.root} is up already") from None


class InTurn:
    """How the clients of one process train: one at a time, since a function may use its module's variables, and none
    sends before all have trained. So one whose training fails leaves no round that waits for it.
    """

    def __init__(self, clients: int) -> None:
        self._one = asyncio.Lock()
        self._all = asyncio.Barrier(clients)

    async def __call__(self, work: Callable[[], T]) -> T:
        async with self._one:
            result = await abandonable(work)
        await self._all.wait()
        return result


async def together(*work: Awaitable[None]) -> None:
    """Until all have ended, or one has failed: the others are cancelled then, and its exception is raised."""

    async def wait_for(one: Awaitable[None]) -> None:
        await one

    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(wait_for(one))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def as_client(train: Any, number: int | None) -> Any:
    """The function as one client of a lab calls it: `client` is its number, from 0, if it has a parameter of this name.

    number: None outside of a lab. Raises `bad-settings` for a function that must be told then.
    """
    try:
        asked = inspect.signature(train).parameters.get("client")
    except (TypeError, ValueError):  # of a function in C nobody knows
        return train
    if asked is None:
        return train
    if number is not None:
        return partial(train, client=number)
    if asked.default is asked.empty:
        raise ProblemError(
            BAD_SETTINGS, "the function asks which client of a lab it is; give 'client' a default, or name a --lab"
        )
    return train
