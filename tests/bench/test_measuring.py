"""Each case once, at a tiny size: no figure is judged here."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from he_bench import results
from he_bench.cli import app
from he_bench.disk import SAMPLE_SECONDS, PeakDisk, peak_disk
from he_bench.isolated import measured
from he_bench.memory import PeakMemory
from he_bench.results import Comparison, Failed, LoadRun, Measurement, Missing, PeerResult, Point, Run
from he_bench.runner import run_point

TINY = 3000


LONG = [
    pytest.param(case, marks=pytest.mark.long)
    for case in ("encrypt", "encrypt_noise", "ingest", "share", "open", "round")
]


@pytest.mark.parametrize("case", ["fold", *LONG])
async def test_case(case: str) -> None:
    found = await measured(Point(case, "kahe-30", TINY, 2, 2), 0.0)
    assert isinstance(found, Measurement), found
    assert found.seconds.repetitions == 3
    assert found.seconds.minimum > 0
    assert found.traffic > 0


@pytest.mark.long
async def test_ckks_goes_through_the_same_seam() -> None:
    found = await measured(Point("open", "ckks-8192", TINY, 2, 1), 0.0)
    assert isinstance(found, Measurement), found


def test_a_refusal_is_told_by_the_process() -> None:
    found = run_point(Point("encrypt", "kahe-14", TINY, 10**6, 1), 0.0)
    assert isinstance(found, Failed)
    assert "sum-could-wrap" in found.reason


@pytest.mark.long
def test_run_and_report(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    arguments = ["run", "--case", "fold", "--profile", "kahe-20", "--d", str(TINY), "--clients", "2"]
    ran = CliRunner().invoke(app, [*arguments, "--json", str(file), "--format", "json"])
    assert ran.exit_code == 0, ran.output
    found = msgspec.json.decode(ran.stdout, type=Run)
    assert found == results.load(file)
    assert [result.point.case for result in found.results] == ["fold"]
    shown = CliRunner().invoke(app, ["report", str(file), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "kahe-20" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.long
def test_peers_take_turns_and_open_their_sums(tmp_path: Path) -> None:
    chosen = [word for name in ("hushsum:kahe-30", "plain", "tenseal", "hushsum:kahe-99") for word in ("--peer", name)]
    arguments = ["peers", "--d", str(TINY), "--repetitions", "1", "--clients", "3", *chosen]
    ran = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert ran.exit_code == 0, ran.output
    found = msgspec.json.decode(ran.stdout, type=Comparison)
    *measured, unknown = found.results
    for result in measured:
        assert isinstance(result, PeerResult), result
        assert result.error < 1e-5
        assert result.traffic > TINY
    assert isinstance(unknown, Missing)
    assert "kahe-99" in unknown.reason


@pytest.mark.long
def test_a_load_is_acknowledged_whole() -> None:
    arguments = ["load", "--clients", "3", "--bursts", "2", "--d", str(TINY), "--format", "json"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    (found,) = msgspec.json.decode(ran.stdout, type=LoadRun).results
    assert (found.seconds.repetitions, found.file_only.repetitions) == (2, 3)
    assert (found.lost, found.told_to_wait) == (0, 0)
    assert found.peak_disk > found.traffic


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--case", "boil"], "unknown case"),
        (["run", "--profile", "kahe-99"], "unknown profile"),
        (["peers", "--peer", "nobody"], "unknown peer"),
        (["peers", "--python-for", "nvflare=/nowhere/python"], "an interpreter"),
    ],
)
def test_a_slip_of_the_pen_is_refused(arguments: list[str], text: str) -> None:
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 2
    assert text in ran.output


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_peak_memory_counts_what_was_freed_again() -> None:
    watch = PeakMemory([os.getpid()])
    bytearray(b"x" * (64 << 20)).clear()
    above = watch.above()
    assert above is not None
    assert 60 << 20 < above < 200 << 20


async def test_peak_disk_counts_what_was_removed_again(tmp_path: Path) -> None:
    async with peak_disk(tmp_path) as watch:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_bytes(bytes(1000))
        while watch.peak < 1000:
            await asyncio.sleep(SAMPLE_SECONDS)
        (tmp_path / "folder" / "file").unlink()
    assert watch.peak == 1000


async def test_a_disk_that_cannot_be_looked_at_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_watch: PeakDisk, _directory: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(PeakDisk, "look", broken)
    with pytest.raises(PermissionError):
        async with peak_disk(tmp_path):
            await asyncio.sleep(10 * SAMPLE_SECONDS)
