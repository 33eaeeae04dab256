"""A few kills on each database, in `make test-long`; `make crash` does hundreds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.crash.account import Evidence, Finding
from tests.crash.collect import decode_ones
from tests.crash.killer import Toll
from tests.crash.run import Database, Report, run
from tests.crash.submitter import Coordinates
from tests.crash.world import SCALE

KILLS = 6
PACE = 2.0
"""Faster than for hundreds: most of the time goes into starting programs anyway."""


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_killed_processes_lose_and_repeat_nothing(tmp_path: Path, database: Database) -> None:
    killed: list[int] = []
    report = run(database, tmp_path, KILLS, seed=1, progress=killed.append, pace=PACE)
    assert report.findings == (), str(report)
    assert sum(killed) == report.toll.kills.total() >= KILLS
    assert report.toll.kills["server"]
    assert report.rounds["published"]
    assert (report.toll.cuts > 0) == (database == "postgresql")


def test_what_is_found_is_told_with_the_logs_that_may_say_why() -> None:
    finding = Finding("stuck", "update aa of client-2 was never sent")
    toll, evidence = Toll(exits=["client-2: exit code 1"]), Evidence((), ())
    report = Report("sqlite", 1, 2.0, toll, evidence, (finding,), {"client-2": "not waited for", "server": "ready"})
    assert str(report).splitlines() == [
        "ended by itself: client-2: exit code 1",
        "stuck: update aa of client-2 was never sent",
        "--- client-2",
        "not waited for",
        "--- server",
        "ready",
    ]


def test_ones_are_counted_and_errors_measured() -> None:
    total = np.array([SCALE + 9, 0, 3 * SCALE, -2 * SCALE - 20, 0])
    ones, error = decode_ones(total, updates=4)
    assert ones == {0: 1, 2: 3, 3: -2}
    assert error == pytest.approx(20 / (6.4 * 2))


def test_a_coordinate_stays_with_the_update_that_was_sealed_for_it(tmp_path: Path) -> None:
    """Killed after the sealing, before it was noted down; and killed before the sealing."""
    path = tmp_path / "coordinates.json"
    assert Coordinates(path, first=2, step=5).reserve() == 2
    after = Coordinates(path, first=2, step=5)
    after.settle({"a"})
    assert after.reserve() == 7
    later = Coordinates(path, first=2, step=5)
    later.settle({"a"})
    assert later.reserve() == 12
    later.settle({"a", "b"})
    assert Coordinates(path).of == {"a": 2, "b": 12}
