"""What a run leaves behind: typed results, and the JSON files that hold them.

Times are seconds, sizes bytes. Rates are not stored: they follow from what is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

SuiteName = Literal["quick", "full"]


class Spread(msgspec.Struct, frozen=True):
    """Repetitions of one measurement. Compare medians; the minimum is what an idle machine would show."""

    minimum: float
    median: float
    maximum: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), median(values), max(values), len(values))


class Point(msgspec.Struct, frozen=True):
    """One measurement to make: a case, and the size of its work. `cores` bounds what it may use."""

    case: str
    profile: str
    parameters: int
    clients: int
    cores: int


class Measurement(msgspec.Struct, frozen=True, tag="measured"):
    """One point, measured.

    work: parameters handled in one repetition, over all updates. traffic: bytes that one update (or,
    for `share`, one holder's release) puts on the wire. peak_memory: bytes above the input, over all
    processes of the side that is measured; None where the system does not tell. stages: median
    seconds of stages of a repetition, where the case tells them apart.
    """

    point: Point
    seconds: Spread
    work: int
    traffic: int
    peak_memory: int | None
    stages: dict[str, float]

    @property
    def ns_per_parameter(self) -> float:
        return self.seconds.median * 1e9 / self.work

    @property
    def bytes_per_parameter(self) -> float:
        return self.traffic / self.point.parameters


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """One point that could not be measured, and why."""

    point: Point
    reason: str


class Machine(msgspec.Struct, frozen=True):
    """Where and when the figures were taken. `load` is the one-minute load average at the start."""

    processor: str
    cores: int
    memory: int
    system: str
    python: str
    packages: dict[str, str]
    date: str
    load: float


class Run(msgspec.Struct, frozen=True, tag="run"):
    """What `he-bench run` found."""

    machine: Machine
    suite: str
    results: tuple[Measurement | Failed, ...]


class About(msgspec.Struct, frozen=True):
    """A peer as it was measured: library with version, its settings, and who is able to decrypt."""

    library: str
    setting: str
    decrypts: str
    python: str


class PeerResult(msgspec.Struct, frozen=True, tag="measured"):
    """One peer. send: a client's work for one update, from floats to bytes; encrypt: of that, all but digests and
    signatures, which only some peers make; receive: a server's, from those bytes to its running sum. traffic: bytes
    that the client sends. error: the largest difference between an update and the opened mean of copies of it: what
    one update carries, before it averages out."""

    peer: str
    about: About
    send: Spread
    encrypt: Spread
    receive: Spread
    traffic: int
    error: float


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """A peer that could not be measured: usually not installed."""

    peer: str
    reason: str


class Comparison(msgspec.Struct, frozen=True, tag="peers"):
    """What `he-bench peers` found; ratios are to the peer named `reference`."""

    machine: Machine
    parameters: int
    clients: int
    cores: int
    reference: str
    results: tuple[PeerResult | Missing, ...]


class LoadPoint(msgspec.Struct, frozen=True):
    """One load: `clients` at once on `processes` server processes, `bursts` times, others each time.

    `database`: an async URL; empty is SQLite.
    """

    profile: str
    parameters: int
    clients: int
    processes: int
    bursts: int
    database: str = ""


class Load(msgspec.Struct, frozen=True):
    """One load, measured.

    seconds: from the start of a burst until the last update was acknowledged; bare: the same bytes to a handler that
    only writes files, before and after each burst. traffic: bytes of one update. acknowledged: percentiles 1 to 99 of
    the seconds from a burst's start to a client's receipt. told_to_wait: answers of status 429. lost: acknowledged,
    and unknown to the server. peak_memory: the most that the server's processes held, with the program itself.
    peak_disk: bytes of the most that lay in the server's data directory during a burst, with running sums and SQLite's
    files.
    """

    point: LoadPoint
    seconds: Spread
    file_only: Spread
    traffic: int
    acknowledged: list[float]
    told_to_wait: int
    lost: int
    peak_memory: int | None
    peak_disk: int


class LoadRun(msgspec.Struct, frozen=True, tag="load"):
    """What `he-bench load` found."""

    machine: Machine
    results: tuple[Load, ...]


Report = Run | Comparison | LoadRun


def save(report: Report, path: Path) -> None:
    """Write a report as indented JSON."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot write {path}: {error.strerror}") from None


def load(path: Path) -> Report:
    """Read a file that `save` wrote. Raises `bad-settings`, naming the file."""
    try:
        report: Report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ProblemError(BAD_SETTINGS, f"{path} is not a result of he-bench: {error}") from None
    return report
