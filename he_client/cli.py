"""`he-client`: enroll a device, train for a task, submit updates."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from he_client.plan_command import plan
from he_party import console
from he_party.console import OutputFormat, command, run_async
from he_party.kernels import Steps, Warm, offer_to_warm
from he_party.program import Invitation, KitFile, add_version
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS, BAD_TENSORS

if TYPE_CHECKING:
    from he_client.client import HushSumClient
    from he_client.lab import Lab
    from he_client.rounds import Run
    from he_client.settings import ClientSettings
    from he_client.submission import Submission
    from he_client.trainees import Trainee
    from he_protocol.task import Task

app = typer.Typer(help="A client of HushSum.", no_args_is_help=True, pretty_exceptions_enable=False)
add_version(app)
app.command("plan")(plan)

DataDir = Annotated[Path | None, typer.Option(help="identity and state [HUSHSUM_CLIENT_DATA_DIR]")]
ServerUrl = Annotated[str | None, typer.Option(help="the server's URL [HUSHSUM_CLIENT_SERVER]")]
TaskName = Annotated[str | None, typer.Option(help="the task's name or hash [HUSHSUM_CLIENT_TASK]")]
TlsCa = Annotated[Path | None, typer.Option(help="PEM file that vouches for the server's certificate")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML settings file")]

WAIT = 3600.0


@app.command("init")
@command
def init(
    kit: KitFile = None,
    name: Annotated[str | None, typer.Option(help="name of this device, or of whose it is")] = None,
    min_clients: Annotated[int | None, typer.Option(help="floor: the least min_clients of a task")] = None,
    unit: Annotated[str | None, typer.Option(help="floor: none, record or client; the least privacy")] = None,
    epsilon: Annotated[float | None, typer.Option(help="floor: the most that a task may cost")] = None,
    delta: Annotated[float | None, typer.Option(help="floor: the largest delta at which epsilon counts")] = None,
    collusion: Annotated[int | None, typer.Option(help="floor: the least f, of colluding key holders")] = None,
    server: ServerUrl = None,
    task: TaskName = None,
    tls_ca: TlsCa = None,
    invitation: Invitation = "",
    data_dir: DataDir = None,
    warm: Warm = None,
) -> None:
    """Make this device's key, and the request to send to the authority.

    Floors are what this device asks of every task, whatever the authority signs. They are kept in settings.toml beside
    the key, with the server, the task and --tls-ca: later commands need --data-dir only. HUSHSUM_PASSPHRASE, if it is
    set, protects the key file.
    """
    from he_client.settings import ClientSettings
    from he_party.enrolling import request_line
    from he_party.http_transport import checked_url
    from he_party.keyfile import environment_passphrase
    from he_party.kit import given

    own = given(kit, "client", name, invitation)
    directory = ClientSettings.load(data_dir=data_dir).data_dir
    settings = ClientSettings.load(
        data_dir=data_dir,
        server=server or own.server or None,
        task=task or own.task or None,
        tls_ca=tls_ca or own.ca(directory),
        floor_min_clients=min_clients,
        floor_unit=unit,
        floor_epsilon=epsilon,
        floor_delta=delta,
        floor_collusion=collusion,
    )
    checked_url(settings.server)
    request = own.prepare(directory, "client", time.time(), environment_passphrase())
    settings.keep_own()
    console.out.print(request_line(directory, request), soft_wrap=True)
    offer_to_warm(warm, _kernels)


@app.command("enroll-request")
@command
def enroll_request(data_dir: DataDir = None) -> None:
    """Print the signed enrollment request again."""
    from he_client.settings import ClientSettings
    from he_party.enrolling import REQUEST_FILE
    from he_party.text import read_text

    path = ClientSettings.load(data_dir=data_dir).data_dir / REQUEST_FILE
    if not path.exists():
        raise ProblemError(BAD_SETTINGS, f"no {path}; 'he-client init' makes it")
    typer.echo(read_text(path, BAD_SETTINGS))


@app.command("status")
@command
def status(
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    form: OutputFormat = "text",
) -> None:
    """The task, its newest model, and what privacy this client has spent on it."""
    settings = _settings(config, data_dir, server, task, tls_ca)
    console.show([run_async(_status(settings))], form, "task")


@app.command("model")
@command
def model(
    out: Annotated[Path, typer.Option(help="where to write it, as safetensors")],
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    form: OutputFormat = "text",
) -> None:
    """Save the task's newest model: to use it, or to begin the next epoch with it."""
    settings = _settings(config, data_dir, server, task, tls_ca)
    console.show([run_async(_save_model(settings, out))], form, "model")


@app.command("submit")
@command
def submit(
    file: Annotated[Path, typer.Argument(help="the update: safetensors with the task's tensors")],
    base_version: Annotated[int, typer.Option(help="model version that the update was computed on")],
    examples: Annotated[float | None, typer.Option(help="number of examples, where the task weights by them")] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait for the next round, if already in this one")
    ] = WAIT,
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    form: OutputFormat = "text",
) -> None:
    """Add noise to one update, encrypt it, upload it."""
    settings = _settings(config, data_dir, server, task, tls_ca)
    from he_party.tensors import read_tensors

    tensors = read_tensors(file, BAD_TENSORS, f"cannot read {file}", widen=True)

    async def work() -> Submission:
        async with _client(settings) as client:
            found = await client.task(settings.task)
            await client.resume(found)
            return await client.submit(found, tensors, base_version=base_version, examples=examples, within=wait)

    console.show([_row(run_async(work()))], form, "acknowledged")


@app.command("train")
@command
def train(
    function: Annotated[str, typer.Argument(help="FILE.py:FUNCTION or MODULE:FUNCTION, from the model to the update")],
    rounds: Annotated[int, typer.Option(min=1, help="how many rounds to take part in")] = 1,
    raise_errors: Annotated[
        bool, typer.Option("--raise-errors", help="stop when FUNCTION fails; for trying it out on public data")
    ] = False,
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    lab: Annotated[Path | None, typer.Option(help="a lab's folder: of 'he-server lab init'")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="as every client of the lab, in this process")] = False,
    number: Annotated[int | None, typer.Option("--client", help="as this one of the lab's, counted from 1")] = None,
    form: OutputFormat = "text",
) -> None:
    """Pull the model, train, submit, wait for the round; as often as asked.

    FUNCTION gets a dict of float32 arrays and returns the update, new minus old, of the same names and shapes, or a
    pair of it and the number of examples, or a LocalResult, which says in words whether it holds the update or the new
    weights, and may have metrics: these are shown here, and those that the task asks for join its encrypted sums. If
    FUNCTION has a second parameter without a default, that is the TrainingContext: task, plan, model version, round,
    this client's name, and a state that is kept from round to round. Under a DP plan an update of zeros is sent when it
    fails: that nothing comes would tell something of the data. What went wrong is logged here. A round that fails is
    reported, and the next one begins; then the exit code is 1.

    In a lab, with --all, clients train one after the other, and a parameter named 'client' gets each one's number,
    from 0. The newest model is saved there, as model.safetensors.
    """
    from he_client.trainees import lab_clients, load_function, this_device

    found = load_function(function)
    chosen = _lab(lab, (server, task, data_dir, tls_ca), everyone=everyone, number=number)
    if chosen is None:
        trainees = this_device(_settings(config, data_dir, server, task, tls_ca), found)
    else:
        console.err.print(chosen.warning, markup=False, highlight=False)
        trainees = lab_clients(chosen, found, config, number)
    rows: list[dict[str, object]] = []
    try:
        run_async(_train_all(trainees, rounds, raise_errors, rows))
    finally:
        if rows:
            console.show(rows, form, "rounds")
    if chosen is not None:
        saved = run_async(_save_model(trainees[0].settings, chosen.model))
        console.err.print(f"model version {saved['model_version']}: {saved['file']}", markup=False, highlight=False)
    if any(row["refused"] for row in rows):
        raise typer.Exit(1)


@app.command("updates")
@command
def updates(
    retry: Annotated[bool, typer.Option("--retry", help="send what waits, now")] = False,
    drop: Annotated[list[str] | None, typer.Option(help="forget the waiting update with this id")] = None,
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    form: OutputFormat = "text",
) -> None:
    """What became of this device's updates to the task, and why one still waits or was dropped."""
    settings = _settings(config, data_dir, server, task, tls_ca)
    console.show(run_async(_updates(settings, drop or [], retry=retry)), form, "updates")


@app.command("wait")
@command
def wait(
    update: Annotated[str, typer.Argument(help="the id that 'submit' and 'updates' show")],
    within: Annotated[float, typer.Option(min=0, help="seconds")] = WAIT,
    task: TaskName = None,
    server: ServerUrl = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    form: OutputFormat = "text",
) -> None:
    """Wait for what becomes of an acknowledged update: the model version that it went into, or why into none."""
    settings = _settings(config, data_dir, server, task, tls_ca)

    async def work() -> dict[str, object]:
        async with _client(settings) as client:
            version = await client.wait(await client.task(settings.task), update, within=within)
            return {"update_id": update, "model_version": version}

    console.show([run_async(work())], form, "published")


def _kernels() -> Steps:
    from he_client.schemes import kernel_steps

    return kernel_steps()


def _lab(lab: Path | None, of_a_device: tuple[object, ...], *, everyone: bool, number: int | None) -> Lab | None:
    """The lab of this folder; None where none is asked for. Raises `bad-settings` for options that do not fit."""
    from he_client.lab import Lab

    if lab is None:
        if everyone or number is not None:
            raise ProblemError(BAD_SETTINGS, "--all and --client are about the clients of a --lab")
        return None
    if any(option is not None for option in of_a_device):
        raise ProblemError(BAD_SETTINGS, "a lab has its own server, task and data directories: leave these options out")
    if everyone == (number is not None):
        raise ProblemError(BAD_SETTINGS, "which clients of the lab?", expected="--all or --client N")
    return Lab.open(lab)


async def _train_all(trainees: list[Trainee], rounds: int, raise_errors: bool, rows: list[dict[str, object]]) -> None:
    """Adds a row for every round of each, as it ends."""
    from he_client.lab import InTurn, together

    run = InTurn(len(trainees))
    with console.err.status("training, and waiting for the others and the committee"):
        await together(*(_train(trainee, rounds, raise_errors, run, rows) for trainee in trainees))


async def _train(trainee: Trainee, rounds: int, raise_errors: bool, run: Run, rows: list[dict[str, object]]) -> None:
    from he_client.rounds import train_rounds

    name = {"client": trainee.name} if trainee.name else {}
    async with _client(trainee.settings) as client:
        task = await client.task(trainee.settings.task)
        if not trainee.name:
            _warn(client, task)
        number = 0
        async for outcome in train_rounds(client, task, trainee.train, rounds, raise_errors=raise_errors, run=run):
            number += 1
            row = {"update_id": "", "round": "", "bytes": 0} if outcome.sent is None else _row(outcome.sent)
            refused = str(outcome.refusal) if outcome.refusal else ""
            version = "" if outcome.version is None else outcome.version
            numbers = {metric: value for metric, value in outcome.metrics.items() if isinstance(value, float)}
            metrics = {"metrics": numbers} if numbers else {}
            rows.append(name | row | {"model_version": version, **_spent(client, task), **metrics, "refused": refused})
            said = refused or ("sat out" if outcome.sent is None else f"model version {version}")
            who = f"{trainee.name}, " if trainee.name else ""
            console.err.print(f"{who}round {number} of {rounds}: {said}", markup=False, highlight=False)


async def _updates(settings: ClientSettings, drop: list[str], *, retry: bool) -> list[dict[str, object]]:
    async with _client(settings) as client:
        task = await client.task(settings.task)
        for update_id in drop:
            client.drop(task, update_id)
        if retry:
            await client.resume(task)
        return [
            {"update_id": one.update_id, "state": one.state, "problem": one.problem, "why": one.detail}
            for one in client.updates(task)
        ]


async def _status(settings: ClientSettings) -> dict[str, object]:
    async with _client(settings) as client:
        task = await client.task(settings.task)
        model = await client.pull_model(task)
        return {
            "task": task.config.name,
            "scheme": f"{task.config.encryption.scheme}/{task.config.encryption.profile}",
            "parameters": task.parameters,
            "model_version": model.version,
            **_spent(client, task),
            "epsilon_planned": round(client.privacy_planned(task), 4),
            "delta": task.config.privacy.delta,
            "neighbours": task.config.privacy.neighbours,
            "reports": ", ".join(metric.name for metric in task.config.aggregation.metrics),
            "credential_until": client.credential_until,
        }


def _spent(client: HushSumClient, task: Task) -> dict[str, object]:
    account = client.privacy_account(task)
    return {"epsilon_spent": round(account.epsilon, 4), "accountant": account.method}


async def _save_model(settings: ClientSettings, out: Path) -> dict[str, object]:
    async with _client(settings) as client:
        task = await client.task(settings.task)
        model = await client.pull_model(task)
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(model.tensors, out)
    except (OSError, SafetensorError) as error:
        raise ProblemError(BAD_SETTINGS, f"cannot write {out}: {error}") from None
    return {"task": task.config.name, "epoch": task.config.epoch, "model_version": model.version, "file": str(out)}


def _warn(client: HushSumClient, task: Task) -> None:
    plan = task.config.privacy
    if plan.noisy:
        console.err.print(
            f"{task.config.name}: {plan.unit}-level epsilon {client.privacy_planned(task):.3f} at delta {plan.delta:g}"
            f" if all {task.config.rounds.max_openings} openings are used; neighbours: {plan.neighbours}"
        )
    else:
        console.err.print(f"{task.config.name}: sums are opened without differential privacy", style="bold")


def _settings(
    config: Path | None, data_dir: Path | None, server: str | None, task: str | None, tls_ca: Path | None
) -> ClientSettings:
    from he_client.settings import ClientSettings

    settings = ClientSettings.load(config, data_dir=data_dir, server=server, task=task, tls_ca=tls_ca)
    if not settings.task:
        raise ProblemError(BAD_SETTINGS, "which task? give --task or HUSHSUM_CLIENT_TASK")
    return settings


def _client(settings: ClientSettings) -> HushSumClient:
    from he_client.client import HushSumClient
    from he_party.identity import Identity
    from he_party.keyfile import environment_passphrase

    identity = Identity.load(
        settings.data_dir, environment_passphrase(), role="client", group_may_read=settings.group_readable_keys
    )
    state = settings.data_dir / "state"
    return HushSumClient(settings.server, identity, state_dir=state, floors=settings.floors, tls=settings.tls)


def _row(sent: Submission) -> dict[str, object]:
    seconds = {f"{stage}_seconds": round(value, 4) for stage, value in sent.seconds.items()}
    limits = {} if sent.limited is None else asdict(sent.limited)
    limited = {name: float(f"{value:.4g}") for name, value in limits.items()}
    return {"update_id": sent.update_id, "round": sent.round, "bytes": sent.bytes} | seconds | limited
