"""Options that several commands of `he-server` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", show_default=False)]
DataDir = Annotated[Path | None, typer.Option(help="Where blobs, key and SQLite file live.", show_default=False)]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="postgresql://USER@HOST/DATABASE; default: SQLite in the data directory.", show_default=False),
]
TaskArgument = Annotated[
    str, typer.Argument(help="A task's name, for its newest epoch; or its hash, or how that begins.")
]
