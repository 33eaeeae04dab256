"""One self-contained HTML page: tables, and pictures inside as base64."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from he_bench.report.tables import Table, describe, tables
from he_bench.results import Report

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin-top: 2.5rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .7rem; text-align: left; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
.note { color: #b26a00; }
.machine { color: #888; font-size: .85rem; }
img { background: #fff; max-width: 100%; }
"""


def page(reports: Sequence[Report], pictures: Mapping[str, bytes]) -> str:
    """The whole page; `pictures` are PNG bytes by name."""
    pieces = []
    for report in reports:
        pieces += [_section(table) for table in tables(report)]
        pieces.append(f'<p class="machine">{escape(describe(report.machine))}</p>')
    for name, png in pictures.items():
        data = b64encode(png).decode("ascii")
        pieces.append(f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>HushSum benchmarks</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>HushSum benchmarks</h1>\n"
        + "\n".join(pieces)
        + "\n</body>\n</html>\n"
    )


def _section(table: Table) -> str:
    head = _row("th", table.columns, table.text_columns)
    body = "\n".join(_row("td", row, table.text_columns) for row in table.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n<thead>{head}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>{notes}"
    )


def _row(tag: str, cells: Sequence[str], text_columns: int) -> str:
    made = (
        f"<{tag}>{escape(cell)}</{tag}>" if position < text_columns else f'<{tag} class="number">{escape(cell)}</{tag}>'
        for position, cell in enumerate(cells)
    )
    return f"<tr>{''.join(made)}</tr>"
