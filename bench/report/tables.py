"""Reports as tables of text; the terminal, Markdown and HTML all show the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cases import DESCRIPTIONS
from bench.results import Comparison, Failed, Machine, Measurement, Missing, PeerResult, Report, Run
from bench.units import figure, number, seconds, size

MISSING_CELL = "-"


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
        return [_comparison(report)]
    return [table for case in DESCRIPTIONS if (table := _case(report, case)) is not None]


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
    columns = ("profile", "d", "clients", "cores", "median", "min", "max", "ns/param", "bytes/param", "peak memory")
    stages = tuple(next((list(result.stages) for result in results if isinstance(result, Measurement)), []))
    return Table(
        f"{case}: {DESCRIPTIONS[case]}",
        columns + stages,
        tuple(_row(result, stages) for result in results),
        notes=tuple(
            f"{r.point.profile}, d = {r.point.parameters}: {r.reason}" for r in results if isinstance(r, Failed)
        ),
    )


def _row(result: Measurement | Failed, stages: tuple[str, ...]) -> tuple[str, ...]:
    point = result.point
    head = (point.profile, number(point.parameters), number(point.clients), str(point.cores))
    if isinstance(result, Failed):
        return (*head, "failed", *[MISSING_CELL] * (5 + len(stages)))
    spread = result.seconds
    return (
        *head,
        *(seconds(value) for value in (spread.median, spread.minimum, spread.maximum)),
        figure(result.ns_per_parameter),
        figure(result.bytes_per_parameter),
        size(result.peak_memory),
        *(seconds(result.stages[stage]) for stage in stages),
    )


def _comparison(comparison: Comparison) -> Table:
    """Medians, and ratios to the reference."""
    reference = next(
        (r for r in comparison.results if isinstance(r, PeerResult) and r.peer == comparison.reference), None
    )
    what = f"d = {number(comparison.parameters)}, {comparison.clients} clients, {comparison.cores} core"
    columns = (
        "peer",
        "library",
        "setting",
        "who can decrypt",
        "client",
        "x",
        "bytes/param",
        "x",
        "server add",
        "x",
        "error",
    )
    return Table(
        f"one update, {what}{'s' if comparison.cores > 1 else ''}; x: times {comparison.reference}",
        columns,
        tuple(_peer_row(result, reference, comparison.parameters) for result in comparison.results),
        text_columns=4,
        notes=tuple(f"{r.peer} is missing: {r.reason}" for r in comparison.results if isinstance(r, Missing)),
    )


def _peer_row(result: PeerResult | Missing, reference: PeerResult | None, parameters: int) -> tuple[str, ...]:
    if isinstance(result, Missing):
        return (result.peer, "missing", *[MISSING_CELL] * 9)

    def times(mine: float, theirs: float | None) -> str:
        return figure(mine / theirs) if theirs else MISSING_CELL

    about = result.about
    return (
        result.peer,
        about.library,
        about.setting,
        about.decrypts,
        seconds(result.send.median),
        times(result.send.median, reference and reference.send.median),
        figure(result.traffic / parameters),
        times(result.traffic, reference and reference.traffic),
        seconds(result.receive.median),
        times(result.receive.median, reference and reference.receive.median),
        f"{result.error:.1e}",
    )
