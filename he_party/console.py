"""How the command lines of clients and key holders speak: one clear line per refusal, JSON for scripts."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import msgspec
import typer

from he_protocol.errors import ProblemError, printable

if TYPE_CHECKING:
    from rich.console import Console

    out: Console
    err: Console

Format = Literal["text", "json"]
OutputFormat = Annotated[Format, typer.Option("--format", help="text for people, or json for programs")]
REFUSED = 2
"""Exit code of a refusal."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

WIDE = 200
"""Columns where standard output is no terminal: a log or a pipe must not cut names short."""

P = ParamSpec("P")
T = TypeVar("T")


def __getattr__(name: str) -> Console:
    """`out` and `err`, made when something is printed: rich takes as long to import as all else of a command line."""
    if name == "out":
        return _out()
    if name == "err":
        return _err()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _out() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


@functools.cache
def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Turn refusals into one line on standard error and exit code 2: no traceback reaches a user."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ProblemError as refusal:
            from rich.markup import escape

            _err().print(f"[red]refused[/red] {escape(str(refusal))}", highlight=False, soft_wrap=True, markup=True)
            raise typer.Exit(REFUSED) from None
        except KeyboardInterrupt:
            from he_party.threads import abandoned

            if abandoned():  # what still runs would be torn down in the middle
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None

    return run


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine to its end."""
    import asyncio

    return asyncio.run(work)


def show(rows: Sequence[dict[str, object]], form: Format, title: str) -> None:
    """Print rows as a table, or as one JSON array."""
    if form == "json":
        typer.echo(msgspec.json.encode(rows).decode())
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["nothing yet"]
    for name in names:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(escape(printable(str(row.get(name, "")))) for name in names))
    _out().print(table)
