"""Coverage-guided fuzzing of the binary formats: `python -m tests.fuzz --seconds 600 [--target NAME]`.

The time is divided over the targets, each in a process of its own. Inputs that crash one are saved in `--crashes`;
the exit status is 1 if there are any. `--keep` adds the new inputs that reach new code to tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import targets

KEEP_BYTES = 2048
"""Larger inputs stay out of the repository."""


@dataclass(frozen=True)
class Outcome:
    """What one target did. Coverage counts edges, at the start (from the corpus) and at the end."""

    target: str
    executions: int
    covered_first: int
    covered: int
    findings: tuple[Path, ...]


def fuzz(name: str, seconds: int, crashes: Path, *, keep: bool = False) -> Outcome:
    """Run one target in a process of its own for so many seconds."""
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        old.mkdir()
        for i, data in enumerate(targets.corpus(name)):
            (old / f"{i:04}").write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.process", name]
        limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=65536"]
        folders = [f"-artifact_prefix={crashes / name}-", str(new), str(old)]
        done = subprocess.run([*command, *limits, *folders], capture_output=True, text=True, check=False)
        if keep:
            targets.keep(name, (path.read_bytes() for path in new.iterdir() if path.stat().st_size <= KEEP_BYTES))
    findings = tuple(sorted(set(crashes.iterdir()) - before))
    covered = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    executions = [int(found) for found in re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)]
    if done.returncode and not findings:
        raise RuntimeError(f"the target {name} did not run:\n{done.stdout}\n{done.stderr}")
    if findings:
        print(done.stdout, done.stderr, sep="\n")
    return Outcome(name, max(executions, default=0), min(covered, default=0), max(covered, default=0), findings)


def table(outcomes: list[Outcome]) -> str:
    """One line for each target."""
    lines = [f"{'target':18}{'executions':>12}{'coverage':>10}{'new':>6}  findings"]
    for o in outcomes:
        names = ", ".join(path.name for path in o.findings) or "none"
        lines.append(f"{o.target:18}{o.executions:12,}{o.covered:10}{o.covered - o.covered_first:6}  {names}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if nothing was found, 1 for findings, 2 where atheris is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=targets.NAMES, action="append", help="only this one; may be repeated")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"), help="where crashing inputs are saved")
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to the corpus")
    given = parser.parse_args(arguments)
    if find_spec("atheris") is None:
        print("atheris is missing on this platform: nothing was fuzzed", file=sys.stderr)
        return 2
    names = given.target or targets.NAMES
    seconds = max(1, given.seconds // len(names))
    outcomes = [fuzz(name, seconds, given.crashes, keep=given.keep) for name in names]
    print(table(outcomes))
    return int(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
