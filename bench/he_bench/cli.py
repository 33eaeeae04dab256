"""`he-bench`: measure HushSum, measure its peers, write the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from he_bench.cases import DESCRIPTIONS
from he_bench.results import Failed, LoadPoint, LoadRun, Measurement, Report, Run, SuiteName
from he_bench.units import number, seconds
from he_party import console
from he_party.console import Format, OutputFormat, command, show_json
from he_party.program import add_version
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

if TYPE_CHECKING:
    from rich.progress import Progress

CASES = "\n\n".join(f"`{name}`: {text}." for name, text in DESCRIPTIONS.items())
app = typer.Typer(
    help="What HushSum costs, and what its peers cost at the same work.\n\n"
    "A first look: `he-bench run`, a few minutes. For a page to show: `he-bench run --suite full --json run.json`, "
    "`he-bench peers --json peers.json`, `he-bench report run.json peers.json --out report`.\n\n"
    "Figures are worth what the machine was: leave it alone while they are taken.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
add_version(app)
JsonFile = Annotated[Path | None, typer.Option("--json", help="write the results here too, for `he-bench report`")]
PAGE_WIDTH = 120
"""Columns for output that is not a terminal."""


@app.command(
    "run",
    help="Measure HushSum's own cases: time, bytes, peak memory; each point in a fresh process.\n\n"
    f"{CASES}\n\nTimes are medians over repetitions, after a warm-up.",
)
@command
def run(
    suite: Annotated[SuiteName, typer.Option(help="quick: d = 10^4 and 10^6; full: up to 10^8")] = "quick",
    profile_: Annotated[
        list[str] | None, typer.Option("--profile", help="only this profile; may be repeated [all]", show_default=False)
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="only this case; may be repeated [all]", show_default=False)
    ] = None,
    parameters: Annotated[
        list[int] | None,
        typer.Option("--d", min=1, help="parameters, in place of the suite's; may be repeated", show_default=False),
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=2, help="clients, in place of the suite's; may be repeated", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    form: OutputFormat = "text",
) -> None:
    from he_bench import machine
    from he_bench.profiles import profile, profiles
    from he_bench.runner import run_point
    from he_bench.suites import SUITES, points

    chosen, names = case or list(DESCRIPTIONS), profile_ or list(profiles())
    _check_known("case", chosen, list(DESCRIPTIONS))
    for name in names:
        profile(name)
    described = machine.describe()
    wanted = points(
        SUITES[suite],
        chosen,
        names,
        machine.available_cores(),
        parameters=parameters or (),
        clients=clients or (),
    )
    found: list[Measurement | Failed] = []
    with _progress() as progress:
        bar = progress.add_task("", total=len(wanted))
        for point in wanted:
            text = f"{point.case} {point.profile}, d = {number(point.parameters)}, {point.clients} clients"
            progress.update(bar, description=text)
            result = run_point(point, SUITES[suite].budget)
            found.append(result)
            shown = seconds(result.seconds.median) if isinstance(result, Measurement) else result.reason
            progress.console.print(f"{text}, {point.cores} core(s): {shown}", style="dim", highlight=False)
            progress.advance(bar)
    _finish(Run(described, suite, tuple(found)), json_file, form)


@app.command("peers")
@command
def peers(
    parameters: Annotated[int, typer.Option("--d", min=1, help="parameters of the update")] = 1_000_000,
    clients: Annotated[int, typer.Option(min=2, help="clients in a sum: settings leave room for them")] = 25,
    cores: Annotated[int, typer.Option(min=1, help="cores that every peer may use")] = 1,
    repetitions: Annotated[int, typer.Option(min=1, help="turns of every peer, after one to warm up")] = 5,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="only this peer, as in the table; may be repeated [all]", show_default=False),
    ] = None,
    python_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER=PYTHON", help="another interpreter for a peer; may be repeated", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="the peer that ratios refer to [HushSum's default profile]", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    form: OutputFormat = "text",
) -> None:
    """Measure the same work by HushSum, NVFlare, Flower, TenSEAL and plain federated averaging.

    One float32 update: a client's work to the bytes on the wire, those bytes, the server's work to add them.
    All take turns, so that a busy machine disturbs all alike. A peer that is not installed is named as missing;
    `pip install 'hushsum[peers]'` installs them, or `--python-for nvflare=venv/bin/python` uses another
    environment, which needs nothing of HushSum.
    """
    from he_bench.compare import compare, peer_names
    from he_bench.profiles import default_profile

    chosen = peer or peer_names()
    _check_known("peer", [name.partition(":")[0] for name in chosen], [n.partition(":")[0] for n in peer_names()])
    with _progress() as progress:
        bar = progress.add_task("", total=None)
        comparison = compare(
            chosen,
            _interpreters(python_for or ()),
            parameters=parameters,
            clients=clients,
            cores=cores,
            repetitions=repetitions,
            reference=reference or f"hushsum:{default_profile()}",
            progress=lambda text: progress.update(bar, description=text),
        )
    _finish(comparison, json_file, form)


@app.command("load")
@command
def load(
    clients: Annotated[
        list[int] | None, typer.Option(min=2, help="clients at once; may be repeated [1000]", show_default=False)
    ] = None,
    processes: Annotated[
        list[int] | None, typer.Option(min=1, help="server processes; may be repeated [1]", show_default=False)
    ] = None,
    parameters: Annotated[int, typer.Option("--d", min=1, help="parameters of the update")] = 100_000,
    bursts: Annotated[int, typer.Option(min=1, help="how often, with other clients each time")] = 3,
    profile_: Annotated[
        str | None, typer.Option("--profile", help="of the task [the default one]", show_default=False)
    ] = None,
    postgres: Annotated[
        str, typer.Option(metavar="DSN", help="a PostgreSQL where databases may be made; default: SQLite only")
    ] = "",
    json_file: JsonFile = None,
    form: OutputFormat = "text",
) -> None:
    """Let many clients send at once, and count what was acknowledged, how fast, and at what memory.

    Several processes need PostgreSQL. In turns the same bytes go to a handler that only writes them to files.
    """
    import asyncio

    from he_bench import machine
    from he_bench.load import measure_load
    from he_bench.profiles import default_profile, profile

    chosen = profile(profile_ or default_profile()).name
    described, found = machine.describe(), []
    for count in clients or [1000]:
        for number_of in processes or [1]:
            for database in ("", postgres) if postgres and number_of == 1 else (postgres,):
                console.err.print(f"{count} clients, {number_of} process(es), {database or 'SQLite'}", highlight=False)
                point = LoadPoint(chosen, parameters, count, number_of, bursts)
                found.append(asyncio.run(measure_load(point, database)))
    _finish(LoadRun(described, tuple(found)), json_file, form)


@app.command("report")
@command
def report(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="what --json wrote")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="write report.md, report.html and PNGs here", show_default=False)
    ] = None,
    form: OutputFormat = "text",
) -> None:
    """Show results again; with `--out`, as Markdown, as one HTML page with everything inside, and as pictures."""
    from he_bench import results
    from he_bench.report import files

    loaded = [results.load(path) for path in sources]
    for each in loaded:
        _show(each, form)
    if folder is not None:
        written = files.write(loaded, folder)
        console.err.print(f"wrote {', '.join(str(path) for path in written)}", soft_wrap=True, highlight=False)


def _finish(found: Report, json_file: Path | None, form: Format) -> None:
    from he_bench import results

    if json_file is not None:
        results.save(found, json_file)
    _show(found, form)


def _show(found: Report, form: Format) -> None:
    if form == "json":
        show_json(found)
    else:
        from rich.console import Console

        from he_bench.report import terminal

        terminal.show(found, Console(width=None if sys.stdout.isatty() else PAGE_WIDTH))


def _interpreters(pairs: Sequence[str]) -> dict[str, str]:
    """PEER=PYTHON pairs. Raises `bad-settings`."""
    pythons = {}
    for pair in pairs:
        name, _, python = pair.partition("=")
        if shutil.which(python) is None:
            raise ProblemError(BAD_SETTINGS, f"--python-for {pair}", expected="PEER=an interpreter's path")
        pythons[name] = python
    return pythons


def _check_known(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    for name in chosen:
        if name not in known:
            raise ProblemError(BAD_SETTINGS, f"unknown {what}", expected=", ".join(dict.fromkeys(known)), got=name)


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console.err, transient=True)
