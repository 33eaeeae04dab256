from __future__ import annotations

from pathlib import Path

import pytest

from he_bench import results
from he_bench.results import Report, Spread
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from tests.bench.samples import LOADS, PEERS, RUN, measurement


@pytest.mark.parametrize("report", [RUN, PEERS, LOADS])
def test_what_is_saved_is_loaded(report: Report, tmp_path: Path) -> None:
    results.save(report, tmp_path / "report.json")
    assert results.load(tmp_path / "report.json") == report


@pytest.mark.parametrize("content", ["", "{}", '{"type": "run"}', "[1]"])
def test_another_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ProblemError, match=r"other\.json") as caught:
        results.load(path)
    assert caught.value.problem is BAD_SETTINGS


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot read"):
        results.load(tmp_path / "nowhere.json")


def test_rates_follow_from_what_is_stored() -> None:
    found = measurement("encrypt", 1_000_000)
    assert found.ns_per_parameter == pytest.approx(10.0)
    assert found.bytes_per_parameter == 4.0


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0, 3)
