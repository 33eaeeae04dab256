"""The demo as a visitor runs it, with one round, and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.schemes import SCHEMES

pytestmark = pytest.mark.long  # what it does in processes, the other tests of this folder do with smaller models

SECONDS = 240
FIELDS = {
    "scheme": str,
    "profile": str,
    "rounds": int,
    "failed_rounds": list,
    "clients": int,
    "committee": dict,
    "parameters": int,
    "accuracy": float,
    "epsilon": float,
    "delta": float,
    "bytes_per_parameter": float,
    "seconds_per_round": dict,
    "max_abs_error_vs_plain_sum": float,
    "total_seconds": float,
    "date": str,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One round of 24 phones and 4 key holders under the first scheme."""
    folder = tmp_path_factory.mktemp("demo")
    scheme, _ = SCHEMES[0]
    command = [sys.executable, "-m", "examples.har", "--rounds", "1", "--scheme", scheme]
    paths = ["--directory", str(folder / "run"), "--report", str(folder / "demo-report.json")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUSHSUM_")}
    done = subprocess.run(
        [*command, *paths],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (folder / "demo-report.png").read_bytes().startswith(b"\x89PNG")
    read: dict[str, object] = json.loads((folder / "demo-report.json").read_text())
    return read


def test_the_report_says_what_was_run(report: dict[str, object]) -> None:
    assert {name: type(report[name]) for name in FIELDS} == FIELDS
    assert (report["scheme"], report["profile"]) == SCHEMES[0]
    assert (report["rounds"], report["failed_rounds"]) == (1, [])
    assert report["clients"] == 24
    assert report["committee"] == {"holders": 4, "threshold": 2, "agreement": 3, "f": 1}
    assert report["parameters"] == 13_414
    assert set(report["seconds_per_round"]) == {"train", "encrypt", "upload", "sum", "open"}  # type: ignore[call-overload]


def test_the_opened_sum_is_the_plain_sum_to_the_unit(report: dict[str, object]) -> None:
    assert report["scheme"] == "ckks"
    assert report["max_abs_error_vs_plain_sum"] == 0


def test_privacy_and_accuracy_are_real_figures(report: dict[str, object]) -> None:
    assert 0.1 < float(str(report["epsilon"])) < 8
    assert 1 / 6 < float(str(report["accuracy"])) <= 1
