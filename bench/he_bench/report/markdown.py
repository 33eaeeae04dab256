"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from he_bench.report.tables import Table, describe, tables
from he_bench.results import Report


def page(reports: Sequence[Report], pictures: Sequence[str]) -> str:
    """One Markdown page; `pictures` are file names beside it."""
    pieces = ["# Benchmarks"]
    for report in reports:
        pieces += [rendered(table) for table in tables(report)]
        pieces.append(f"*{describe(report.machine)}*")
    pieces += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(pieces) + "\n"


def rendered(table: Table) -> str:
    """One table with its notes."""
    rules = ["---" if position < table.text_columns else "---:" for position in range(len(table.columns))]
    rows = [_row(table.columns), _row(rules), *(_row(row) for row in table.rows)]
    notes = "".join(f"\n\n{note}" for note in table.notes)
    return f"## {table.title}\n\n" + "\n".join(rows) + notes


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
