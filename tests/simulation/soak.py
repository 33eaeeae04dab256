"""`python -m tests.simulation.soak 10000`: so many schedules, on all cores, and what happened in them."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.table import Table

from .operations import draw, run, smallest

SLICE = 50
PROGRESS = 500
"""Schedules between two lines that say how far it is."""


def soak(numbers: range) -> tuple[Counter[str], list[str]]:
    """Run these schedules; what happened in them, and for each that fails why, at its smallest."""
    counts, failures = Counter[str](), list[str]()
    for number in numbers:
        counts["schedules"] += 1
        try:
            record = run(draw(number))
        except Exception:
            try:
                run(smallest(draw(number)))
            except Exception as error:
                failures.append("".join(traceback.format_exception(error)))
        else:
            counts.update(record.counts)
            counts["lies"] += record.lies
    return counts, failures


def fix_hashes(module: str) -> None:
    """Begin this program again with a fixed order of sets of names: a schedule is the same one tomorrow."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})


def main() -> None:
    """Arguments: how many schedules, and the number of the first."""
    fix_hashes("tests.simulation.soak")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start, console, counts, broken = time.monotonic(), Console(), Counter[str](), 0
    slices = [range(at, min(at + SLICE, first + count)) for at in range(first, first + count, SLICE)]
    with ProcessPoolExecutor(os.cpu_count(), max_tasks_per_child=10) as pool:  # what dead machines leave adds up
        for found, failures in pool.map(soak, slices):
            counts += found
            broken += len(failures)
            for failure in failures:
                console.print(failure, markup=False, highlight=False)
            if counts["schedules"] % PROGRESS == 0:
                console.print(f"{counts['schedules']} schedules, {broken} failed, {time.monotonic() - start:.0f} s")
    title = f"{counts['schedules']} schedules in {time.monotonic() - start:.0f} s, {broken} failed"
    table = Table("what", "how often", title=title)
    for what, often in sorted(counts.items()):
        table.add_row(what, f"{often:,}")
    console.print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
