"""`he-holder`: a key holder's commands."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from he_holder.cli.epochs import app as epochs_app
from he_holder.cli.options import ConfigFile, DataDir, MinClientsFloor, TlsCa
from he_party import console
from he_party.console import OutputFormat, command, run_async
from he_party.kernels import Steps, Warm, offer_to_warm
from he_party.program import Invitation, KitFile, add_version

app = typer.Typer(help="A key holder of HushSum.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(epochs_app)
add_version(app)


@app.command("init")
@command
def init(
    kit: KitFile = None,
    name: Annotated[str | None, typer.Option(help="whose it is; the task's committee lists it in lower case")] = None,
    invitation: Invitation = "",
    data_dir: DataDir = None,
    warm: Warm = None,
) -> None:
    """Make a key holder's signing and HPKE keys, and the request to send to the authority.

    HUSHSUM_PASSPHRASE, if it is set, protects the key files.
    """
    from he_holder.keyring import new_holder
    from he_holder.settings import Settings
    from he_party.enrolling import request_line
    from he_party.keyfile import environment_passphrase
    from he_party.kit import given

    settings = Settings.load(data_dir=data_dir)
    own = given(kit, "holder", name, invitation)
    request = new_holder(
        settings.data_dir, own.name, time.time(), environment_passphrase(), own.invitation, own.display
    )
    own.unpack(settings.data_dir)
    if (ca := own.ca(settings.data_dir)) is not None:
        Settings.keep(settings.data_dir, {"tls_ca": str(ca.absolute())})
    console.out.print(request_line(settings.data_dir, request), soft_wrap=True)
    offer_to_warm(warm, _kernels)


@app.command("join")
@command
def join(
    task: Annotated[str, typer.Argument(help="the task's name or hash")],
    server: Annotated[str, typer.Option(help="the server's URL")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    patience: Annotated[float, typer.Option(help="seconds to wait for the others in each phase")] = 600,
    min_clients_floor: MinClientsFloor = None,
) -> None:
    """Join a task: check what it promises, agree to open its sums, and make the committee's key with the others."""
    from he_holder.cli import joined
    from he_holder.settings import Settings

    settings = Settings.load(config, data_dir=data_dir, tls_ca=tls_ca, min_clients_floor=min_clients_floor)
    run_async(joined.join(settings, task, server, patience))


@app.command("run")
@command
def run(
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    min_clients_floor: MinClientsFloor = None,
    poll_seconds: Annotated[float | None, typer.Option(help="how often to ask the server")] = None,
) -> None:
    """Serve the joined tasks: check every manifest, vote, release shares. Makes outbound requests only."""
    from he_holder.cli import joined
    from he_holder.settings import Settings

    settings = Settings.load(
        config,
        data_dir=data_dir,
        tls_ca=tls_ca,
        min_clients_floor=min_clients_floor,
        poll_seconds=poll_seconds,
    )
    run_async(joined.run(settings))


@app.command("status")
@command
def status(data_dir: DataDir = None, form: OutputFormat = "text") -> None:
    """Joined tasks, their committees and keys, and how much of their budgets is used, as far as this holder has seen.

    openings: the highest number of an opening in this holder's votes. votes: how many of them it has voted for itself,
    or released a share of; it may have been away for the others.
    """
    from he_holder.cli import joined
    from he_holder.settings import Settings

    settings = Settings.load(data_dir=data_dir)
    rows = run_async(joined.status(settings))
    if form == "text":
        rows = [row | {"hash": str(row["hash"])[:12]} for row in rows]  # so much of it will do for the other commands
    console.show(rows, form, "joined tasks")


@app.command("ledger")
@command
def ledger(data_dir: DataDir = None, form: OutputFormat = "text") -> None:
    """Every manifest that this holder voted for or refused, and whether its share has left."""
    from he_holder.cli import joined
    from he_holder.settings import Settings

    settings = Settings.load(data_dir=data_dir)
    console.show(run_async(joined.ledger(settings)), form, "decisions")


def _kernels() -> Steps:
    from he_holder.schemes import kernel_steps

    return kernel_steps()
