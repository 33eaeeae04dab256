"""What the command line of every program has: `--version`, and an output that takes any text."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from he_protocol.version import PROTOCOL


def _show(context: typer.Context, wanted: bool) -> None:
    if wanted:
        import he_party

        typer.echo(f"{Path(context.info_name or 'hushsum').name} {he_party.__version__}, protocol {PROTOCOL}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show, is_eager=True, help="Show the version, and that of the protocol.")
]

KitFile = Annotated[
    Path | None, typer.Argument(help="NAME.kit, as 'he-authority provision' makes it.", metavar="[KIT]")
]
Invitation = Annotated[str, typer.Option(help="The authority's one-time code, as 'he-authority invite' makes it.")]


class Program(TyperGroup):
    """The commands of a program."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """What the console's encoding has no letter for is shown as an escape, in place of an error."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)


def add_version(app: typer.Typer) -> None:
    """Give a program the option `--version`, and make it a `Program`."""

    @app.callback(cls=Program)
    def program(version: Version = False) -> None:
        """Replaced by the help text that the program was made with."""
