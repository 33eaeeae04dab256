"""Tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table as RichTable

from he_bench.report.tables import Table, describe, tables
from he_bench.results import Report


def show(report: Report, console: Console) -> None:
    """Print one report."""
    for table in tables(report):
        console.print(rendered(table))
    console.print(escape(describe(report.machine)), style="dim", soft_wrap=True, highlight=False)


def rendered(table: Table) -> Group:
    """One table with its notes."""
    shown = RichTable(
        title=escape(table.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for position, column in enumerate(table.columns):
        text = position < table.text_columns
        shown.add_column(
            column, justify="left" if text else "right", overflow="fold", no_wrap=position == 0 or not text
        )
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    return Group(shown, *(f"[yellow]{escape(note)}[/yellow]" for note in table.notes))
