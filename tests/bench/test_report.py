from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from he_bench.report import files, html, markdown, terminal
from he_bench.report.tables import Table, tables
from he_bench.results import Report
from he_bench.units import figure, number, seconds, size
from tests.bench.samples import LOADS, PEERS, RUN

PNG = b"\x89PNG"


def find(report: Report, start: str) -> Table:
    return next(table for table in tables(report) if table.title.startswith(start))


@pytest.mark.parametrize("report", [RUN, PEERS, LOADS])
def test_rows_are_as_wide_as_the_head(report: Report) -> None:
    for table in tables(report):
        assert {len(row) for row in table.rows} <= {len(table.columns)}


def test_a_failure_is_shown_with_its_reason() -> None:
    table = find(RUN, "encrypt")
    assert "failed" in table.rows[2]
    assert "it <broke>" in table.notes[0]


def test_a_missing_peer_is_named() -> None:
    table = find(PEERS, "one update")
    assert table.rows[2][:2] == ("absent", "missing")
    assert table.notes[1:] == ("absent is missing: No module named 'absent'",)


def test_ratios_are_to_the_reference() -> None:
    ours, theirs, _ = find(PEERS, "one update").rows
    assert (ours[2], ours[6]) == ("1.00", "1.00")
    assert (theirs[2], theirs[6]) == ("10.0", "2.00")


def test_ingest_is_compared_with_the_bare_handler() -> None:
    table = find(RUN, "stages of ingest")
    assert table.columns[-1] == "x file-only"
    assert table.rows[0][-1] == "5.00"


def test_a_load_is_a_share_of_the_bare_handler() -> None:
    table = find(LOADS, "many clients")
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert (shown["updates/s"], shown["of file-only"], shown["least"]) == ("50.0", "75%", "25%")
    assert (shown["p50"], shown["p99"], shown["429s"]) == ("500 ms", "990 ms", "5")
    assert (shown["memory"], shown["disk"]) == ("1.00 MiB", "2.00 MiB")


def test_terminal_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=160)
    terminal.show(RUN, console)
    terminal.show(PEERS, console)
    shown = capsys.readouterr().out
    assert "kahe-30" in shown
    assert "it <broke>" in shown
    assert "the <server>" in shown


def test_markdown_escapes_bars() -> None:
    assert "a \\| setting" in markdown.page([PEERS], ["peers.png"])


def test_html_escapes_and_embeds() -> None:
    page = html.page([RUN, PEERS], {"peers": PNG})
    assert "the &lt;server&gt;" in page
    assert "data:image/png;base64,iVBORw==" in page
    assert "<server>" not in page


def test_files_of_two_runs(tmp_path: Path) -> None:
    written = {path.name: path for path in files.write([RUN, RUN, PEERS], tmp_path / "out")}
    pictures = {"case-encrypt.png", "case-ingest.png", "case-encrypt-2.png", "case-ingest-2.png", "peers.png"}
    assert set(written) == {"report.md", "report.html"} | pictures
    assert all(written[name].read_bytes().startswith(PNG) for name in pictures)
    assert "case-encrypt-2.png" in written["report.md"].read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00123, "0.00123"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (16.24, "16.2"),
        (99.95, "100.0"),
        (1340.4, "1,340"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_units() -> None:
    assert [seconds(value) for value in (2.0, 0.5, 2e-5, 3e-9)] == ["2.00 s", "500 ms", "20.0 µs", "3.00 ns"]
    assert [size(value) for value in (None, 10, 2048, 3 << 30)] == ["?", "10.0 B", "2.00 KiB", "3.00 GiB"]
    assert [number(value) for value in (10, 1000, 1024, 10**8)] == ["10", "10^3", "1,024", "10^8"]
