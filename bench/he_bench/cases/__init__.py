"""The cases: one module each, with `prepare(point)`, an async context manager that yields a `Workload`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module

from he_bench.results import Point

DESCRIPTIONS = {
    "encrypt": "a client: clip, quantise, encrypt one update",
    "encrypt_noise": "a client: the same with differential-privacy noise",
    "fold": "the server: add packed updates to a fresh sum",
    "share": "a key holder: sum the key parts of all updates, release its share",
    "open": "the server: combine the sum with a quorum's shares",
    "ingest": "updates sent over HTTP to a server process, until all are durable",
    "round": "a whole round of real processes: from floats to a published model",
}


def own_processes() -> list[int]:
    """This process and its workers."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


@dataclass(frozen=True)
class Workload:
    """Work that can be repeated; see `he_bench.results.Measurement` for `work` and `traffic`.

    run: one repetition; returns the seconds of its stages, where it has any. pids: the processes
    whose memory counts. timed: the stage that is the measurement, where that is not the whole.
    """

    run: Callable[[], Awaitable[Mapping[str, float]]]
    work: int
    traffic: int
    pids: Callable[[], Sequence[int]] = own_processes
    timed: str = ""


Prepare = Callable[[Point], AbstractAsyncContextManager[Workload]]


def load_case(name: str) -> Prepare:
    """A case by its name."""
    prepare: Prepare = import_module(f"{__name__}.{name}").prepare
    return prepare
