"""Results as a run would leave them."""

from __future__ import annotations

from he_bench.results import (
    About,
    Comparison,
    Failed,
    Load,
    LoadPoint,
    LoadRun,
    Machine,
    Measurement,
    Missing,
    PeerResult,
    Point,
    Run,
    Spread,
)

MACHINE = Machine(
    "a processor", 2, 8 << 30, "Linux", "CPython 3.11", {"numpy": "2.0"}, "2026-01-01T00:00:00+00:00", 0.1
)
SPREAD = Spread(0.009, 0.010, 0.012, 5)


def measurement(case: str, parameters: int, stages: dict[str, float] | None = None) -> Measurement:
    point = Point(case, "kahe-30", parameters, 10, 1)
    return Measurement(point, SPREAD, parameters, 4 * parameters, 1 << 20, stages or {})


RUN = Run(
    MACHINE,
    "quick",
    (
        measurement("encrypt", 10_000),
        measurement("encrypt", 1_000_000),
        Failed(Point("encrypt", "ckks-8192", 10_000, 10, 1), "it <broke>"),
        measurement("ingest", 10_000, {"file-only": 0.002, "server": 0.010}),
    ),
)
ABOUT = About("Library 1.0", "a | setting", "the <server>", "CPython 3.11")
PEERS = Comparison(
    MACHINE,
    1000,
    25,
    1,
    "ours",
    (
        PeerResult("ours", ABOUT, SPREAD, SPREAD, SPREAD, 4000, 1e-7),
        PeerResult("theirs", ABOUT, Spread(0.1, 0.1, 0.1, 1), SPREAD, SPREAD, 8000, 1e-6),
        Missing("absent", "No module named 'absent'"),
    ),
)
LOADS = LoadRun(
    MACHINE,
    (
        Load(
            LoadPoint("kahe-30", 1000, 100, 1, 3),
            seconds=Spread(1.0, 2.0, 4.0, 3),
            file_only=Spread(1.0, 1.5, 2.0, 4),
            traffic=4000,
            acknowledged=[n / 100 for n in range(1, 100)],
            told_to_wait=5,
            lost=0,
            peak_memory=1 << 20,
            peak_disk=1 << 21,
        ),
    ),
)
