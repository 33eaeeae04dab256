"""Which points a suite has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from he_bench.cases import DESCRIPTIONS
from he_bench.profiles import profile
from he_bench.results import Point, SuiteName
from he_bench.world import HOLDERS, THRESHOLD
from he_protocol.schemes.registry import load_scheme
from he_protocol.sharing import Sharing

HEAVY_BYTES = 16
"""Upload bytes per parameter from which on a profile is not measured beyond `HEAVY_PARAMETERS`."""
HEAVY_PARAMETERS = 1_000_000
ROUND_PARAMETERS = 10_000_000
"""The largest model of a whole round here: its clients are all in one process."""
ON_THE_WIRE = frozenset({"ingest", "round"})
SERIAL = frozenset({"fold", "share", "open"})
"""Cases that are measured on one core."""

ENCRYPTING = {"encrypt": (100,), "encrypt_noise": (100,)}


@dataclass(frozen=True)
class Suite:
    """Sizes and numbers of clients. `budget`: seconds to spend on the repetitions of one point."""

    parameters: tuple[int, ...]
    clients: dict[str, tuple[int, ...]]
    budget: float


SUITES: dict[SuiteName, Suite] = {
    "quick": Suite(
        (10_000, 1_000_000),
        ENCRYPTING | {"fold": (10,), "share": (10, 100), "open": (10,), "ingest": (5,), "round": (3,)},
        1.0,
    ),
    "full": Suite(
        (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
        ENCRYPTING | {"fold": (2, 10), "share": (10, 100), "open": (100,), "ingest": (10,), "round": (3, 10)},
        5.0,
    ),
}


def points(
    suite: Suite,
    names: Sequence[str],
    profiles: Sequence[str],
    cores: int,
    *,
    parameters: Sequence[int] = (),
    clients: Sequence[int] = (),
) -> list[Point]:
    """The suite's points for these cases and profiles on a machine with `cores` cores.

    `parameters` and `clients` replace the suite's own sizes, and nothing is then left out as too large.
    """
    return [
        Point(case, name, size, number, count)
        for case in DESCRIPTIONS
        if case in names
        for name in profiles
        for size in parameters or suite.parameters
        if parameters or size <= _largest(case, name)
        for number in clients or suite.clients[case]
        for count in _cores(case, cores)
    ]


def _cores(case: str, available: int) -> tuple[int, ...]:
    """One core for what a core does; a client's work on two as well; all for whole deployments."""
    if case in SERIAL:
        return (1,)
    return (available,) if case in ON_THE_WIRE else tuple(sorted({1, min(2, available)}))


def _largest(case: str, name: str) -> int:
    body = load_scheme(profile(name).scheme, name).body(HEAVY_PARAMETERS, Sharing(HOLDERS, THRESHOLD))
    if sum(section.size for section in body) > HEAVY_BYTES * HEAVY_PARAMETERS:
        return HEAVY_PARAMETERS
    return ROUND_PARAMETERS if case == "round" else max(SUITES["full"].parameters)
