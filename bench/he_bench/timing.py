"""Repeating a workload: how often, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

from he_bench.cases import Workload
from he_bench.memory import PeakMemory
from he_bench.results import Measurement, Point, Spread

FEWEST_REPETITIONS, MOST_REPETITIONS = 3, 20


async def measure(point: Point, workload: Workload, budget: float) -> Measurement:
    """Repeat a warmed-up workload for `budget` seconds, within bounds on the number of repetitions."""
    watch = PeakMemory(workload.pids())
    seconds: list[float] = []
    stages: list[Mapping[str, float]] = []
    while len(seconds) < FEWEST_REPETITIONS or (sum(seconds) < budget and len(seconds) < MOST_REPETITIONS):
        started = time.perf_counter()
        found = await workload.run()
        whole = time.perf_counter() - started
        seconds.append(found[workload.timed] if workload.timed else whole)
        stages.append(found)
    return Measurement(
        point,
        Spread.of(seconds),
        workload.work,
        workload.traffic,
        watch.above(),
        {name: median(found[name] for found in stages) for name in stages[0]},
    )
