"""`python -m tests.crash`: kill the real programs at random moments, then account for every update."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.crash.run import DATABASES, Database, Report, run

LOST_OR_REPEATED = ("lost", "twice", "stuck")


def main(
    kills: Annotated[int, typer.Option(min=1, help="kills per database")] = 200,
    database: Annotated[Database | None, typer.Option(help="default: one after the other")] = None,
    seed: Annotated[int, typer.Option(help="of victims and lifetimes")] = 1,
    pace: Annotated[float, typer.Option(help="how fast they die: 2 halves their lives")] = 1.0,
    json: Annotated[Path | None, typer.Option(help="write the report here")] = None,
    keep: Annotated[Path | None, typer.Option(help="keep everybody's files and logs in this new folder")] = None,
) -> None:
    """kill -9 at random moments; exit code 1 if an update was lost or counted twice, or anything is stuck."""
    console = Console()
    reports = []
    for name in (database,) if database else DATABASES:
        with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
            bar = progress.add_task(name, total=kills)
            root, advance = (keep or Path(folder)) / name, partial(progress.advance, bar)
            reports.append(run(name, root, kills, seed, advance, pace=pace))
    console.print(table(reports))
    for report in reports:
        if text := str(report):
            console.print(f"{report.database}:", text, sep="\n", markup=False, highlight=False)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode([document(report) for report in reports])))
    sys.exit(any(report.findings for report in reports))


def document(report: Report) -> dict[str, object]:
    """The report's figures, for JSON."""
    toll = report.toll
    return {
        "database": report.database,
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
        "kills": toll.kills.total(),
        "kills_by_victim": dict(sorted(toll.kills.items())),
        "server_killed_while_starting": toll.starting,
        "two_at_once": toll.together,
        "connection_cuts": toll.cuts,
        "server_start_seconds": {"median": round(median(toll.starts), 2), "longest": round(max(toll.starts), 2)},
        "exits": toll.exits,
        "rounds": dict(report.rounds),
        "acknowledged": len(report.evidence.updates),
        "in_published_sums": sum(update.state == "published" for update in report.evidence.updates),
        "failure_reported": sum(update.state == "failed" for update in report.evidence.updates),
        **{kind: report.found[kind] for kind in LOST_OR_REPEATED},
        "findings": [{"kind": finding.kind, "what": finding.what} for finding in report.findings],
    }


def table(reports: list[Report]) -> Table:
    """One column per database."""
    made = Table("", *(report.database for report in reports), title="kill -9 at random moments")
    documents = [document(report) for report in reports]
    for field in documents[0]:
        if field not in {"database", "exits", "findings"}:
            made.add_row(field.replace("_", " "), *(_cell(found[field]) for found in documents))
    return made


def _cell(value: object) -> str:
    return "\n".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    typer.run(main)
