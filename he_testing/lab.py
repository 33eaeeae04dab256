"""`he-server lab`: a whole deployment in one folder, to try one's own model with."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from he_client.lab import LOOK_SECONDS, MARK, URL_FILE, WARNING, Lab
from he_party.console import command
from he_party.files import write_durably
from he_party.keyfile import VARIABLE, environment_passphrase
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_testing.deployment import MODEL_FILE, ProvisionedDeployment, provision
from he_testing.eject import STEPS_FILE, write_project
from he_testing.lab_task import initial_model, plan

app = typer.Typer(
    help="A whole deployment in one folder, to try one's own model with. Never for real data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
JOINED_FILE = "joined"
"""The server's URL that the key holders have joined at."""
VALID_DAYS = 3650.0


@app.command("init")
@command
def init(
    folder: Annotated[Path, typer.Argument(help="the lab's folder; it must not be there")],
    model: Annotated[
        str,
        typer.Option(
            help="the initial model: a safetensors file, or FILE.py:NAME or MODULE:NAME of a torch module,"
            " a dict or list of arrays, or a function that returns one"
        ),
    ],
    clients: Annotated[int, typer.Option(min=2, max=1000, help="how many; a round is of all of them")] = 6,
    holders: Annotated[int, typer.Option(min=2, max=10, help="how many key holders")] = 4,
    value_range: Annotated[float, typer.Option(help="largest coordinate of an update")] = 16.0,
    weight_cap: Annotated[
        float | None, typer.Option(min=2, help="weigh by examples: the most that one client counts for")
    ] = None,
    collect_seconds: Annotated[int, typer.Option(min=1, help="how long a round waits for its last client")] = 60,
) -> None:
    """Keys, credentials and data directories of everybody, and the signed task."""
    if environment_passphrase():
        raise ProblemError(BAD_SETTINGS, f"a lab's keys lie unprotected; make it without {VARIABLE}")
    wanted = plan(clients, holders, value_range=value_range, weight_cap=weight_cap, collect_seconds=collect_seconds)
    arrays = initial_model(model)
    with _new(folder) as partial:
        task = provision(partial, wanted, arrays, clients=clients, holders=holders, days=VALID_DAYS)
        (partial / MARK).write_text(f"{WARNING}\n")
    typer.echo(Lab(folder).warning, err=True)
    typer.echo(
        f"{clients} clients, committee {task.committee}, {task.parameters} parameters\nnext: he-server lab up {folder}"
    )


@app.command("up")
@command
def up(
    folder: Annotated[Path, typer.Argument(help="the lab's folder")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="default: that of the last time, or a free one")
    ] = None,
) -> None:
    """Server and key holders, until Ctrl-C ends them; they go on where they were. Everybody's log, by name."""
    lab = Lab.open(folder)
    typer.echo(lab.warning, err=True)
    with lab.held():
        deployment, joined = _opened(folder, port)
        for ending in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, _interrupt)
        url_file = folder / URL_FILE
        try:
            with _shown(folder), deployment:
                _start(deployment, joined)
                write_durably(folder / JOINED_FILE, deployment.url.encode())
                write_durably(url_file, deployment.url.encode())
                typer.echo(f"ready: he-client train FILE.py:FUNCTION --lab {folder} --all")
                _watch(deployment)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; 'he-server lab up {folder}' goes on")
        finally:
            url_file.unlink(missing_ok=True)


@app.command("eject")
@command
def eject(
    folder: Annotated[Path, typer.Argument(help="the lab's folder")],
    out: Annotated[Path, typer.Option(help="a new folder for the project")],
    url: Annotated[str, typer.Option(help="where the server will be")] = "https://aggregator.example",
) -> None:
    """From a lab to the real thing: the project, the plan and the newest model, and the steps that remain.

    No key of the lab comes along: everybody makes a new one, on a machine of its own.
    """
    from he_party.http_transport import checked_url

    lab, url = Lab.open(folder), checked_url(url)
    try:
        deployment = ProvisionedDeployment(folder.absolute())
        model = lab.model if lab.model.exists() else folder / MODEL_FILE
        with _new(out) as partial:
            write_project(partial, deployment.task.config, [path.name for path in lab.clients], url, model)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"the lab {folder} is damaged: {error}") from None
    typer.echo(f"{out / STEPS_FILE} says what remains")


def _opened(folder: Path, port: int | None) -> tuple[ProvisionedDeployment, str]:
    """The deployment, and where its key holders have joined, "" for nowhere. Raises `bad-settings`."""
    joined_file, environment = folder / JOINED_FILE, {"HUSHSUM_SERVER_LOG_FORMAT": "console"}
    try:
        joined = joined_file.read_text() if joined_file.exists() else ""
        wanted = int(joined.rpartition(":")[2] or 0) if port is None else port
        deployment = ProvisionedDeployment(folder.absolute(), environment=environment, port=wanted)
    except (OSError, ValueError) as error:
        raise ProblemError(BAD_SETTINGS, f"the lab {folder} is damaged: {error}") from None
    _check_free(wanted)
    return deployment, joined


def _start(deployment: ProvisionedDeployment, joined: str) -> None:
    """What was done before is not done again. Raises `bad-settings` when a program does not start."""
    try:
        if not joined:
            deployment.add_task()
        deployment.start_server()
        if joined != deployment.url:
            deployment.join()
        deployment.heal()
    except RuntimeError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise ProblemError(BAD_SETTINGS, f"the lab does not start: {last}") from None


def _watch(deployment: ProvisionedDeployment) -> NoReturn:
    """Until the server ends; a key holder that ends is told of, since rounds may go on without it."""
    ended: set[str] = set()
    while deployment.lives("server"):
        for name in deployment.holders:
            if name not in ended and not deployment.lives(name):
                ended.add(name)
                typer.echo(f"{name} has ended", err=True)
        time.sleep(LOOK_SECONDS)
    raise ProblemError(BAD_SETTINGS, "the server has ended; its log says why")


def _check_free(port: int) -> None:
    """Raises `bad-settings` for a port that somebody listens on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ProblemError(
                BAD_SETTINGS, f"cannot listen on port {port}: {error.strerror}; --port 0 takes a free one"
            ) from None


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A new folder, there as a whole or not at all. Raises `bad-settings` where none can be made."""
    partial: Path | None = None
    try:
        if folder.exists():
            raise ProblemError(BAD_SETTINGS, f"{folder} is there already: a lab gets a folder of its own")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield partial
        partial.rename(folder)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot make {folder}: {error.strerror}") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _shown(folder: Path) -> Iterator[None]:
    """What the programs write to their logs from now on, a party's name before each line."""
    read = {path: path.stat().st_size for path in folder.glob("*.log")}
    done = threading.Event()

    def show() -> None:
        for path in sorted(folder.glob("*.log")):
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            for line in whole.decode(errors="replace").splitlines():
                typer.echo(f"{path.stem:9} {line}", err=True)
            read[path] = read.get(path, 0) + len(whole) + bool(whole)

    def follow() -> None:
        while not done.wait(LOOK_SECONDS):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(app(prog_name="he-server lab"))
