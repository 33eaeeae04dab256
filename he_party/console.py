"""How the command lines of clients and key holders speak: one clear line per refusal, JSON for scripts."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from traceback import walk_tb
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, ParamSpec, TypeVar

import msgspec
import typer

from he_party.text import reason
from he_protocol.errors import ProblemError, printable
from he_protocol.problems import BAD_SETTINGS, MISSING_PACKAGE

if TYPE_CHECKING:
    from rich.console import Console

    from he_party.tables import Cell

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

    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, soft_wrap=True, markup=False, emoji=False)  # a folder's name may look like either


@functools.cache
def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Turn refusals into one line on standard error and exit code 2: no traceback reaches a user."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ProblemError as refusal:
            _refuse(refusal)
        except ModuleNotFoundError as error:
            if not _imported_here(error):
                raise
            extra = function.__module__.partition(".")[0].removeprefix("he_")
            how = f"pip install 'hushsum[{extra}]'"
            _refuse(ProblemError(MISSING_PACKAGE, f"{error.name} is not there", expected=how))
        except BrokenPipeError:
            raise  # the reader has seen enough: click ends in silence
        except OSError as error:  # what the machine refuses: a folder that is a file, a disk that is read-only or full
            where = f"{error.filename}: " if error.filename is not None else ""
            _refuse(ProblemError(BAD_SETTINGS, f"{where}{reason(error)}"))
        except KeyboardInterrupt:
            from he_party.threads import abandoned

            if abandoned():  # what still runs would be torn down in the middle
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None

    return run


def _imported_here(error: ModuleNotFoundError) -> bool:
    """Whether one of our own modules asked for the package, and not a user's."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    asking = [name for name in names if not name.startswith("importlib")]
    return asking[-1].startswith("he_") and not str(error.name).startswith("he_")


def _refuse(refusal: ProblemError) -> NoReturn:
    typer.echo(f"{typer.style('refused', fg='red')} {refusal}", err=True)
    raise typer.Exit(REFUSED) from None


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine to its end."""
    import asyncio

    return asyncio.run(work)


def show(rows: Sequence[dict[str, object]], form: Format, title: str) -> None:
    """Print rows as a table, or as one JSON array."""
    if form == "json":
        show_json(rows)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[printable(str(row.get(name, ""))) for name in names] for row in rows]
    show_table([name.replace("_", " ") for name in names], cells, title)


def show_table(names: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> None:
    """Print rows as a table on standard output, as wide as the console is, or as COLUMNS says."""
    from he_party.tables import table

    console = _out()
    if title:
        console.print(title, style="italic")
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isascii() and asked.isdigit() and 0 < len(asked) < 5 else console.width
    shown = table(names, rows, width) if rows else "nothing yet"
    console.print(shown, width=width, soft_wrap=False)


def show_json(value: object) -> None:
    """Print a value as JSON, which is UTF-8 whatever the console's encoding is (RFC 8259, section 8.1)."""
    typer.echo(msgspec.json.encode(value))
