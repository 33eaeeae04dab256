"""`he-server`: make a server's key, migrate, serve, add tasks, look at rounds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from he_party.console import OutputFormat, command, run_async
from he_party.kernels import Steps, Warm, offer_to_warm
from he_party.program import Invitation, KitFile, add_version
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.cli.inspect import audit, doctor
from he_server.cli.lab import lab
from he_server.cli.options import Config, DatabaseUrl, DataDir, TaskArgument
from he_server.cli.plan import plan

if TYPE_CHECKING:
    from he_protocol.documents import TaskState
    from he_server.settings import Settings

app = typer.Typer(
    help="The aggregation server: it sums what it cannot read.\n\n"
    "A first run: `he-server init --data-dir data --name aggregator`, give data/enroll-request.jws to the authority, "
    "put the authority's public key into data/authority.pub, then `he-server serve --data-dir data`.\n\n"
    "Every setting can stand in a TOML file (--config), in the environment (HUSHSUM_SERVER_PORT=8470), "
    "or on the command line; the later wins.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
task_app = typer.Typer(help="Tasks of this server.", no_args_is_help=True)
app.add_typer(task_app, name="task")
add_version(app)


for shown in (plan, doctor, audit):
    app.command(shown.__name__)(command(shown))
# Words after `lab` are that program's.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
app.command("lab", context_settings=PASSED_ON)(command(lab))


@app.command()
@command
def init(
    data_dir: Annotated[Path, typer.Option(help="Directory to make the server's files in.")],
    kit: KitFile = None,
    name: Annotated[str | None, typer.Option(help="The server's name, as clients will address it.")] = None,
    database_url: DatabaseUrl = None,
    invitation: Invitation = "",
    warm: Warm = None,
) -> None:
    """Make the server's key, and the request that the authority turns into a task's server entry.

    A database URL is kept in settings.toml beside the key, as any other setting may be: with --data-dir every command
    finds it there.

    HUSHSUM_PASSPHRASE, if it is set, protects the key file.
    """
    from he_party.enrolling import request_line
    from he_party.keyfile import environment_passphrase
    from he_party.kit import given
    from he_server.settings import Settings
    from he_server.store.address import Address

    own = given(kit, "server", name, invitation)
    try:
        if database_url is not None:
            Address.read(database_url)
        request = own.prepare(data_dir, "server", time.time(), environment_passphrase(), "server.key")
        if database_url is not None:
            Settings.keep(data_dir, {"database_url": database_url})
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot write to {data_dir}: {error.strerror}") from None
    typer.echo(request_line(data_dir, request))
    offer_to_warm(warm, _kernels)


@app.command()
@command
def migrate(config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database to this version's schema."""
    from he_server.services.migration import migrate as migrate_database

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    run_async(migrate_database(settings))
    typer.echo("the database is up to date")


@app.command()
@command
def serve(
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default=False)] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write the port here once the server is ready.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The server's key.", show_default=False)] = None,
    authority_key_file: Annotated[
        Path | None, typer.Option(help="Text file: the authority's public key, base64url.", show_default=False)
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", show_default=False)] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="Time for requests in flight at SIGTERM.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.", show_default=False)] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default=False)] = None,
) -> None:
    """Migrate the database, then serve until SIGTERM or Ctrl-C; requests in flight are finished."""
    from he_server.http.process import run

    settings = _settings(
        config,
        data_dir=data_dir,
        database_url=database_url,
        host=host,
        port=port,
        key_file=key_file,
        authority_key_file=authority_key_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        drain_seconds=drain_seconds,
        log_format=log_format,
        log_level=log_level,
    )
    run_async(run(settings, port_file))


@task_app.command("add")
@command
def task_add(
    task: Annotated[Path, typer.Argument(help="The TaskConfig that the authority signed (JWS).")],
    model: Annotated[Path, typer.Option(help="The initial model: safetensors, float32.")],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Add a task straight into the database; the server need not run."""
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    typer.echo(run_async(stored.add_task(settings, task, model)))


@task_app.command("pause")
@command
def task_pause(
    task: TaskArgument, config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Take no updates to a task for now. Its rounds under way are still opened."""
    _move_task(task, "paused", _settings(config, data_dir=data_dir, database_url=database_url))


@task_app.command("resume")
@command
def task_resume(
    task: TaskArgument, config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Take updates to a paused task again."""
    _move_task(task, "open", _settings(config, data_dir=data_dir, database_url=database_url))


@task_app.command("close")
@command
def task_close(
    task: TaskArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take no more updates to a task, for ever. Its rounds under way are still opened, its models stay."""
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    found = run_async(stored.find(settings, task))
    if not yes:
        about = f"No update to {stored.named(found)}, is taken any more, ever. Go on?"
        typer.confirm(about, abort=True, err=True)
    _move_task(found.task, "closed", settings)  # by its hash: the name may have got another epoch meanwhile


def _move_task(task: str, state: TaskState, settings: Settings) -> None:
    from he_server.cli import stored

    typer.echo(f"{run_async(stored.move_task(settings, task, state))}: {state}")


@app.command()
@command
def revoke(
    revocations: Annotated[Path, typer.Argument(help="The RevocationList that the authority signed (JWS).")],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Put the authority's next revocation list into force; a running server sees it within seconds."""
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    known = run_async(stored.revoke(settings, revocations))
    typer.echo(f"list {known.number}, {len(known.keys)} revoked keys")


@task_app.command("list")
@command
def task_list(
    config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None, form: OutputFormat = "text"
) -> None:
    """All tasks and where they stand."""
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    found = run_async(stored.read(settings))
    stored.show([(task, []) for task, _ in found], form)


@app.command()
@command
def status(
    config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None, form: OutputFormat = "text"
) -> None:
    """Tasks and their last rounds."""
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    stored.show(run_async(stored.read(settings)), form)


@app.command()
@command
def abandon(
    task: TaskArgument,
    number: Annotated[int, typer.Argument(help="The round.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Give up a round that waits for its key holders: its updates are spent, and their clients train again.

    A key holder votes once for an update, so none of these can be opened in another round. Nothing else is lost: later
    rounds go on.
    """
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    if not yes:
        typer.confirm(f"Round {number} fails, and its updates are spent. Go on?", abort=True, err=True)
    run_async(stored.abandon(settings, task, number))
    typer.echo(f"round {number} is given up")


@app.command()
@command
def recover(
    task: TaskArgument,
    opening: Annotated[
        int | None, typer.Option(min=0, help="The last opening that holders voted for; default: what they say.")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(min=0, help="The version that the model gets; default: one that no lost model can have."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Go on after an older backup was restored: key holders have seen later openings and model versions than this
    database has. The newest model that is here gets a version that no lost model can have; numbers go on after theirs.

    By default the numbers are those that more holders have seen than may lie; 'he-holder status' shows them at each.
    """
    from he_server.cli import stored

    settings = _settings(config, data_dir=data_dir, database_url=database_url)
    went_on = run_async(stored.recover(settings, task, opening, version))
    typer.echo(f"the next opening is {went_on[0] + 1}, the newest model version {went_on[1]}")


def _kernels() -> Steps:
    from he_server.services.kernels import kernel_steps

    return kernel_steps()


def _settings(config: Path | None, **flags: str | int | float | Path | None) -> Settings:
    from he_server.http import logging
    from he_server.settings import load_settings

    settings = load_settings(config, **flags)
    settings.check_home()
    logging.configure(settings.log_format, settings.log_level)
    return settings
