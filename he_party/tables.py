"""Tables for people, in which no figure is ever cut off: where one is too wide, each row is a list instead."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

GAP = 2
"""Blanks between two columns."""

Cell = str | Text
"""Text is shown as it is, with its style; nothing in it is markup."""


def table(names: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> RenderableType:
    """Rows under their names, for a console of so many columns."""
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    columns = [[row[at] for row in cells] for at in range(len(names))]
    spare = width - GAP * (len(names) - 1)
    least = [max(_longest(name), *map(_longest, column), 1) for name, column in zip(names, columns, strict=True)]
    on_one_line = [max(cell_len(name), needed) for name, needed in zip(names, least, strict=True)]
    for widths in (on_one_line, least):
        if sum(widths) <= spare:
            return _rows([_column(*each) for each in zip(names, columns, widths, strict=True)], cells)
    return Group(*(_list(names, row) for row in cells))


def _longest(cell: Cell) -> int:
    """Columns of the longest word: so wide a column must be to show it in one piece."""
    return max((cell_len(word) for word in str(cell).split()), default=0)


def _column(name: str, cells: Sequence[Text], width: int) -> Column:
    """Sentences may be broken between words, figures and names never."""
    if any(" " in cell.plain for cell in cells):
        return Column(name, min_width=width, overflow="fold")
    return Column(name, width=width, overflow="fold")


def _rows(columns: Sequence[Column], cells: Sequence[Sequence[Text]]) -> Table:
    padding = (0, GAP - 1, 0, 0)  # one blank is the box's
    found = Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for row in cells:
        found.add_row(*row)
    return found


def _list(names: Sequence[str], row: Sequence[Text]) -> Table:
    found = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, GAP, 0, 0))
    for name, cell in zip(names, row, strict=True):
        if cell.plain:
            found.add_row(Text(name, style="bold"), cell)
    found.add_row()
    return found
