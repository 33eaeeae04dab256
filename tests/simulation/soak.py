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

from .operations import run
from .schedules import Schedule, explore

SLICE = 250
"""Schedules that hypothesis draws together: they are more alike than those of two slices."""
PROGRESS = 500
"""Schedules between two lines that say how far it is."""


def soak(number: int, examples: int) -> tuple[Counter[str], str]:
    """Run slice `number` of schedules; what happened in them, and why the simplest that fails does ("": none does)."""
    counts = Counter[str]()

    def check(schedule: Schedule) -> None:
        counts["schedules"] += 1
        counts.update(run(schedule).counts)

    try:
        explore(check, examples, number)
    except Exception as error:
        return counts, "".join(traceback.format_exception(error))
    return counts, ""


def fix_hashes(module: str) -> None:
    """Begin this program again with a fixed order of sets of names: a schedule is the same one tomorrow."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})


def main() -> None:
    """Arguments: how many schedules, and the number of the first slice."""
    fix_hashes("tests.simulation.soak")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start, console, counts, broken = time.monotonic(), Console(), Counter[str](), 0
    sizes = [min(SLICE, count - at) for at in range(0, count, SLICE)]
    with ProcessPoolExecutor(os.cpu_count(), max_tasks_per_child=2) as pool:  # what dead machines leave adds up
        for found, failure in pool.map(soak, range(first, first + len(sizes)), sizes):
            counts += found
            if failure:
                broken += 1
                console.print(failure, markup=False, highlight=False)
            if counts["schedules"] % PROGRESS < SLICE:
                console.print(f"{counts['schedules']} schedules, {broken} failed, {time.monotonic() - start:.0f} s")
    title = f"{counts['schedules']} schedules in {time.monotonic() - start:.0f} s, {broken} failed"
    table = Table("what", "how often", title=title)
    for what, often in sorted(counts.items()):
        table.add_row(what, f"{often:,}")
    console.print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
