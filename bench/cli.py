"""`he-bench`: measure HushSum, measure its peers, write the report."""

from __future__ import annotations

import typer

app = typer.Typer(help="Measure HushSum and its peers.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Measure HushSum and its peers."""
