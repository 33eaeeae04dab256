"""What the command line of every program has: `--version`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from he_protocol.version import PROTOCOL


def _show(context: typer.Context, wanted: bool) -> None:
    if wanted:
        import he_party

        typer.echo(f"{Path(context.info_name or 'hushsum').name} {he_party.__version__}, protocol {PROTOCOL}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show, is_eager=True, help="Show the version, and that of the protocol.")
]


def add_version(app: typer.Typer) -> None:
    """Give a program the option `--version`."""

    @app.callback()
    def program(version: Version = False) -> None:
        """Replaced by the help text that the program was made with."""
