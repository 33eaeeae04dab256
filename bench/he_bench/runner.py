"""Running points one after the other, each in its own process."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from he_bench.results import Failed, Measurement, Point

LONGEST_SECONDS = 3600.0
"""A point that takes longer than this is given up."""
Result = Measurement | Failed


def run_point(point: Point, budget: float) -> Result:
    """Measure one point for about `budget` seconds."""
    command = [sys.executable, "-m", "he_bench.isolated", msgspec.json.encode(point).decode(), str(budget)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Failed(point, f"not done after {LONGEST_SECONDS:.0f} s")
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Failed(point, lines[-1] if lines else f"exit code {done.returncode}")
    result: Result = msgspec.json.decode(done.stdout, type=Result)
    return result
