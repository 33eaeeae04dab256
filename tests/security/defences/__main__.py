"""Switch off one defence after the other and require that a test of its row fails.

`python -m tests.security.defences [WORDS]`.
Tests run in copies of the source, one for every worker; nothing here is changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from queue import SimpleQueue
from random import Random
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.architecture.source import IMPORTABLE, ROOT
from tests.security.defences.edits import EDITS, Edit, switched_off
from tests.security.defences.rows import ROWS, Row

FAILED = re.compile(r"^FAILED (\S+::.+?)(?: - (.*))?$", re.MULTILINE)
BROKEN = (
    "AttributeError",
    "ImportError",
    "IndentationError",
    "ModuleNotFoundError",
    "NameError",
    "SyntaxError",
    "TypeError",
)
"""An edit that ends in one of these did not switch a defence off: it broke the program."""


@dataclass(frozen=True)
class Outcome:
    """`test` is the first that failed; `problem` is why the switching off does not count as noticed, if it does not."""

    row: Row
    edit: Edit
    test: str = ""
    problem: str = ""


def pytest(
    tree: Path, tests: Sequence[str], *options: str, compiling: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy. PYTHONPATH comes before what is installed, also in the programs that tests start.

    Only while the source is as it was may compiled files be written.
    """
    folders = os.pathsep.join(str(tree / Path(folder).relative_to(ROOT)) for folder in IMPORTABLE)
    environment = os.environ | {"PYTHONPATH": folders, "COLUMNS": "400"}
    if not compiling:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-rf", "--tb=short", "-p", "no:cacheprovider", *options, *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def try_without(tree: Path, row: Row, edit: Edit) -> Outcome:
    with switched_off(edit, tree):
        done = pytest(tree, row.tests)
    failed = FAILED.search(done.stdout)
    if done.returncode == 0:
        return Outcome(row, edit, problem="still passes")
    if done.returncode != 1 or failed is None:
        return Outcome(row, edit, problem=f"pytest ended with {done.returncode}: {done.stdout[-300:]}")
    test, reason = failed[1], failed[2] or ""
    return Outcome(row, edit, test, reason if reason.startswith(BROKEN) else "")


def copy_source(tree: Path) -> None:
    """What git knows, and what is new: times too, by which Python and numba know what they have compiled."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def try_all(chosen: Sequence[tuple[Row, Edit]], jobs: int, home: Path) -> list[Outcome]:
    """In copies under `home`. Ends the program when a test fails with every defence on."""
    first = home / "0"
    copy_source(first)
    tests = sorted({test for row, _ in chosen for test in row.tests})
    print(f"{len(tests)} tests with every defence on", flush=True)
    whole = pytest(first, tests, "--numprocesses", str(jobs), "--dist", "loadfile", compiling=True)
    if whole.returncode:
        sys.exit(whole.stdout)
    trees = SimpleQueue[Path]()
    trees.put(first)
    for worker in range(1, jobs):
        trees.put(Path(shutil.copytree(first, home / str(worker))))

    def tried(pair: tuple[Row, Edit]) -> Outcome:
        tree = trees.get()
        try:
            outcome = try_without(tree, *pair)
        finally:
            trees.put(tree)
        print(outcome.edit.place, outcome.problem or outcome.test, sep=": ", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(tried, chosen))


def main() -> None:
    parser = argparse.ArgumentParser("tests.security.defences", description=__doc__)
    parser.add_argument("words", nargs="*", help="only rows and places with one of these words")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, drawn by the seed")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="default: another one every day")
    arguments = parser.parse_args()
    chosen = [
        (row, edit)
        for row in ROWS
        for edit in EDITS
        if edit.belongs_to(row)
        and (not arguments.words or any(word in f"{row.attack} {edit.place}" for word in arguments.words))
    ]
    if not chosen:
        parser.error(
            f"no row and no place has one of these words: {' '.join(arguments.words)}; see docs/threat-model.md"
        )
    if arguments.sample is not None and arguments.sample < len(chosen):
        print(f"{arguments.sample} of {len(chosen)} defences, seed {arguments.seed}", flush=True)
        chosen = Random(arguments.seed).sample(chosen, arguments.sample)
    started = time.monotonic()
    with TemporaryDirectory(prefix="defences-") as home:
        outcomes = try_all(chosen, arguments.jobs, Path(home))
    unnoticed = sum(bool(outcome.problem) for outcome in outcomes)
    rows = {row for row, _ in chosen}
    seconds = time.monotonic() - started
    title = f"{len(rows)} rows, {len(chosen)} defences switched off, {unnoticed} unnoticed, {seconds:.0f} s"
    table = Table("attack", "switched off", "test that failed", title=title)
    for outcome in outcomes:
        said = f"[red]{escape(outcome.problem)}" if outcome.problem else escape(outcome.test.split("::")[-1])
        table.add_row(escape(outcome.row.attack), outcome.edit.place, said)
    Console().print(table)
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
