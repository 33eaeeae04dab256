"""`python -m tests.simulation.soak 10000`: so many schedules, or as many as `--seconds` allow, on all cores, and what
happened in them."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from multiprocessing import get_context

from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SAWarning

from .operations import run
from .schedules import Schedule, explore

SLICE = 250
"""Schedules that one process runs in one go."""
PROGRESS = 500
"""Schedules between two lines that say how far it is."""


def soak(job: tuple[int, int]) -> tuple[Counter[str], str]:
    """Run a slice, its number and size given; what happened, and why the simplest that fails does ("": none does)."""
    (number, examples), counts = job, Counter[str]()
    mute()

    def check(schedule: Schedule) -> None:
        counts["schedules"] += 1
        counts.update(run(schedule).counts)

    try:
        explore(check, examples, number)
    except Exception as error:
        return counts, "".join(traceback.format_exception(error))
    return counts, ""


def mute() -> None:
    """Say nothing about connections that dead machines have left open, and nothing of what devices log."""
    logging.getLogger("he-client").setLevel(logging.CRITICAL)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "The garbage collector is trying to clean up", SAWarning)


def fix_hashes(module: str) -> None:
    """Begin this program again with a fixed order of sets of names: a schedule is the same one tomorrow."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})


def main() -> None:
    fix_hashes("tests.simulation.soak")
    parser = argparse.ArgumentParser("tests.simulation.soak", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first slice")
    parser.add_argument("--seconds", type=float, default=math.inf, help="take no more results after so long")
    given = parser.parse_args()
    start, console, counts, broken = time.monotonic(), Console(), Counter[str](), 0
    sizes = [min(SLICE, given.count - at) for at in range(0, given.count, SLICE)]
    # What dead machines leave adds up: a process ends after two. (concurrent.futures' pool can then wait for ever.)
    with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=2) as pool:
        for found, failure in pool.imap(soak, enumerate(sizes, given.first)):
            counts += found
            if failure:
                broken += 1
                console.print(failure, markup=False, highlight=False)
            if counts["schedules"] % PROGRESS < SLICE:
                console.print(f"{counts['schedules']} schedules, {broken} failed, {time.monotonic() - start:.0f} s")
            if time.monotonic() - start > given.seconds:
                break
    title = f"{counts['schedules']} schedules in {time.monotonic() - start:.0f} s, {broken} failed"
    table = Table("what", "how often", title=title)
    for what, often in sorted(counts.items()):
        table.add_row(what, f"{often:,}")
    console.print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
