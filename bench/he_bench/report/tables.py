"""Reports as tables of text; the terminal, Markdown and HTML all show the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from he_bench.cases import DESCRIPTIONS
from he_bench.results import (
    Comparison,
    Failed,
    Load,
    LoadRun,
    Machine,
    Measurement,
    Missing,
    PeerResult,
    Point,
    Report,
    Run,
)
from he_bench.units import figure, number, seconds, size

NOTHING = "-"
FILE_ONLY = "file-only"
"""The stage in which a case does the least that could be done, to compare with."""


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows; the first `text_columns` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    notes: tuple[str, ...] = ()


def tables(report: Report) -> list[Table]:
    """All tables of one report."""
    if isinstance(report, Comparison):
        return [_figures(report), _who(report)]
    if isinstance(report, LoadRun):
        return [_loads(report)]
    found = (table for case in DESCRIPTIONS for table in (_case(report, case), _stages(report, case)))
    return [table for table in found if table is not None]


def describe(machine: Machine) -> str:
    """The machine in one line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    return (
        f"{machine.processor}, {machine.cores} cores, {size(machine.memory)}; {machine.system}; {machine.python}; "
        f"{packages}; {machine.date}, load {machine.load} at the start"
    )


def _case(run: Run, case: str) -> Table | None:
    results = [result for result in run.results if result.point.case == case]
    if not results:
        return None
    columns = ("profile", "d", "n", "cores", "median", "min", "max", "ns/param", "B/param", "memory")
    return Table(
        f"{case}: {DESCRIPTIONS[case]}",
        columns,
        tuple(_row(result) for result in results),
        notes=tuple(
            f"{r.point.profile}, d = {r.point.parameters}: {r.reason}" for r in results if isinstance(r, Failed)
        ),
    )


def _row(result: Measurement | Failed) -> tuple[str, ...]:
    head = _head(result.point)
    if isinstance(result, Failed):
        return (*head, "failed", *[NOTHING] * 5)
    spread = result.seconds
    return (
        *head,
        *(seconds(value) for value in (spread.median, spread.minimum, spread.maximum)),
        figure(result.ns_per_parameter),
        figure(result.bytes_per_parameter),
        size(result.peak_memory),
    )


def _head(point: Point) -> tuple[str, ...]:
    return (point.profile, number(point.parameters), number(point.clients), str(point.cores))


def _stages(run: Run, case: str) -> Table | None:
    """Where the time goes, for cases with several stages; times the file-only handler's, where there is one."""
    results = [r for r in run.results if isinstance(r, Measurement) and r.point.case == case and len(r.stages) > 1]
    if not results:
        return None
    names, file_only = tuple(results[0].stages), FILE_ONLY in results[0].stages
    return Table(
        f"stages of {case}, medians",
        ("profile", "d", "n", "cores", *names, *(["x file-only"] if file_only else [])),
        tuple(
            (
                *_head(r.point),
                *(seconds(r.stages[name]) for name in names),
                *([figure(r.seconds.median / r.stages[FILE_ONLY])] if file_only else []),
            )
            for r in results
        ),
    )


def _loads(run: LoadRun) -> Table:
    return Table(
        "many clients at once: every one sends one update",
        (
            "database",
            "processes",
            "clients",
            "d",
            "updates/s",
            "MB/s",
            "of file-only",
            "least",
            "p50",
            "p99",
            "429s",
            "lost",
            "memory",
            "disk",
        ),
        tuple(_load_row(load) for load in run.results),
        notes=(
            "of file-only: bytes per second, as a share of a handler that only writes files, in turns in the same run;",
            "medians of all bursts; least: our slowest beside its fastest",
        ),
    )


def _load_row(load: Load) -> tuple[str, ...]:
    point = load.point
    return (
        point.database.partition("+")[0] or "sqlite",
        str(point.processes),
        number(point.clients),
        number(point.parameters),
        figure(point.clients / load.seconds.median),
        figure(point.clients * load.traffic / load.seconds.median / 1e6),
        f"{load.file_only.median / load.seconds.median:.0%}",
        f"{load.file_only.minimum / load.seconds.maximum:.0%}",
        seconds(load.acknowledged[49]),
        seconds(load.acknowledged[98]),
        f"{load.told_to_wait:,}",
        str(load.lost),
        size(load.peak_memory),
        size(load.peak_disk),
    )


def _figures(comparison: Comparison) -> Table:
    """Medians, and ratios to the reference."""
    reference = next(
        (r for r in comparison.results if isinstance(r, PeerResult) and r.peer == comparison.reference), None
    )
    cores = f"{comparison.cores} core{'s' if comparison.cores > 1 else ''}"
    return Table(
        f"one update of {number(comparison.parameters)} parameters, {comparison.clients} clients, {cores}"
        f" (x: times {comparison.reference})",
        ("peer", "client", "x", "encrypt", "x", "B/param", "x", "server", "x", "error"),
        tuple(_peer_row(result, reference, comparison.parameters) for result in comparison.results),
        notes=(
            "client: from floats to the bytes on the wire; encrypt: the same without digests and signatures",
            *(f"{r.peer} is missing: {r.reason}" for r in comparison.results if isinstance(r, Missing)),
        ),
    )


def _peer_row(result: PeerResult | Missing, reference: PeerResult | None, parameters: int) -> tuple[str, ...]:
    if isinstance(result, Missing):
        return (result.peer, "missing", *[NOTHING] * 8)

    def times(mine: float, theirs: float | None) -> str:
        return figure(mine / theirs) if theirs else NOTHING

    return (
        result.peer,
        seconds(result.send.median),
        times(result.send.median, reference.send.median if reference else None),
        seconds(result.encrypt.median),
        times(result.encrypt.median, reference.encrypt.median if reference else None),
        figure(result.traffic / parameters),
        times(result.traffic, reference.traffic if reference else None),
        seconds(result.receive.median),
        times(result.receive.median, reference.receive.median if reference else None),
        f"{result.error:.1e}",
    )


def _who(comparison: Comparison) -> Table:
    """What was measured, and who is able to decrypt."""
    measured = [result for result in comparison.results if isinstance(result, PeerResult)]
    return Table(
        "who can decrypt",
        ("peer", "who can decrypt", "library", "setting", "python"),
        tuple((r.peer, r.about.decrypts, r.about.library, r.about.setting, r.about.python) for r in measured),
        text_columns=5,
    )
