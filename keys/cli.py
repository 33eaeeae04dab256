"""`he-keys`: the authority's offline commands, and a key holder's."""

from __future__ import annotations

import asyncio
import signal
import time
import tomllib
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from safetensors.numpy import load_file

from he_client import console
from he_client.console import command, run_async
from he_client.identity import AUTHORITY_FILE
from he_client.tasks import MEMORY_FILE, TaskMemory
from he_client.transport import Transport
from he_protocol.committee import describe
from he_protocol.keyfile import KeyRecord, read_private, write_private
from he_protocol.messages import Role
from he_protocol.privacy import epsilon
from he_protocol.problems import BAD_PLAN, BAD_SETTINGS, BAD_TENSORS, Refusal
from he_protocol.revocation import Revocations
from he_protocol.signing import SigningKey, jwk_x
from he_protocol.task import Task, TaskConfig, TensorSpec, committee_of
from he_protocol.tensors import model_digest
from keys.agent import Agent, serve
from keys.authority import build_config, check_renewal, enrol, next_epoch, revoke
from keys.epochs import destroy, joined_tasks, state_of
from keys.holder import KeyHolder
from keys.keygen import Ceremony
from keys.keyring import new_holder
from keys.life_cycle import app as life_cycle_app
from keys.options import ConfigFile, DataDir, OutputFormat, Passphrase, TlsCa, open_holder
from keys.settings import Settings

app = typer.Typer(help="Authority and key holders of HushSum.", no_args_is_help=True, pretty_exceptions_enable=False)
authority_app = typer.Typer(help="The authority: an offline key that enrols everybody.", no_args_is_help=True)
task_app = typer.Typer(help="Tasks, as the authority signs them.", no_args_is_help=True)
app.add_typer(authority_app, name="authority")
app.add_typer(task_app, name="task")
app.add_typer(life_cycle_app)

AuthorityDir = Annotated[Path, typer.Option("--authority-dir", help="where the authority's key lives")]
AUTHORITY_KEY = "authority.key"


@authority_app.command("init")
@command
def authority_init(directory: AuthorityDir = Path("authority"), passphrase: Passphrase = "") -> None:
    """Make the authority's key. Keep the folder offline; give `authority.pub` to everybody."""
    key = SigningKey.generate()
    write_private(directory / AUTHORITY_KEY, KeyRecord("authority", key.public, key.private), passphrase)
    (directory / AUTHORITY_FILE).write_text(jwk_x(key.public) + "\n")
    console.out.print(f"authority key in {directory}; public key: {jwk_x(key.public)}")


@app.command("enroll")
@command
def enroll(
    request: Annotated[Path, typer.Argument(help="the party's enroll-request.jws")],
    role: Annotated[Role, typer.Option(help="client, holder or server")],
    out: Annotated[Path, typer.Option(help="where to write the credential")],
    days: Annotated[float, typer.Option(min=0.01, help="validity")] = 90,
    renews: Annotated[Path | None, typer.Option(help="the party's last credential: it must be the same party")] = None,
    directory: AuthorityDir = Path("authority"),
    passphrase: Passphrase = "",
) -> None:
    """Certify a party: read its signed request, write its credential (a JWT)."""
    key = read_private(directory / AUTHORITY_KEY, KeyRecord, passphrase).signing
    if renews is not None:
        check_renewal(_text(request), _text(renews), key.public)
    _write(out, enrol(key, _text(request), role, now=time.time(), days=days))
    console.out.print(f"credential for role {role}, valid {days:g} days: {out}")


@authority_app.command("revoke")
@command
def authority_revoke(
    out: Annotated[Path, typer.Option(help="where to write the list")],
    credential: Annotated[list[Path] | None, typer.Option(help="of a key that was stolen; may be repeated")] = None,
    previous: Annotated[Path | None, typer.Option(help="the list before; left out for the first one only")] = None,
    days: Annotated[float, typer.Option(min=0.01, help="validity: bring the next list in time")] = 30,
    directory: AuthorityDir = Path("authority"),
    passphrase: Passphrase = "",
) -> None:
    """Sign the next revocation list: the keys of these credentials speak for nobody any more.

    It names keys: whoever lost one enrols again, under the same name, with a new key. 'he-server revoke' puts it into
    force. Without a credential it renews the list before.
    """
    key = read_private(directory / AUTHORITY_KEY, KeyRecord, passphrase).signing
    last = None if previous is None else _text(previous)
    token = revoke(key, [_text(path) for path in credential or ()], last, now=time.time(), days=days)
    _write(out, token)
    made = Revocations.read(token, key.public)
    console.out.print(f"list {made.number}, {len(made.keys)} revoked keys, valid {days:g} days: {out}")


@task_app.command("sign")
@command
def task_sign(
    plan: Annotated[Path, typer.Argument(help="TOML plan: name, scheme, profile, privacy, limits")],
    model: Annotated[Path, typer.Option(help="initial model, safetensors: gives the tensors' names and shapes")],
    server: Annotated[Path, typer.Option(help="the server's credential")],
    holder: Annotated[list[Path], typer.Option(help="a key holder's credential; once for each, in order")],
    out: Annotated[Path, typer.Option(help="where to write the signed task")],
    directory: AuthorityDir = Path("authority"),
    passphrase: Passphrase = "",
) -> None:
    """Check a plan, complete it (scale, fingerprint, committee) and sign it."""
    key = read_private(directory / AUTHORITY_KEY, KeyRecord, passphrase).signing
    try:
        fields = tomllib.loads(plan.read_text())
    except (OSError, ValueError) as error:  # not there, not UTF-8, not TOML
        raise Refusal(BAD_PLAN, f"{plan}: {error}") from None
    holders = [_text(path) for path in holder]
    tensors = _tensors(model)
    fields["initial_model"] = model_digest(tensors)
    specs = [TensorSpec(name, value.shape) for name, value in tensors.items()]
    config = build_config(fields, specs, _text(server), holders, key.public)
    _write(out, key.sign(config))
    _describe(config, out)


@task_app.command("next")
@command
def task_next(
    last: Annotated[Path, typer.Argument(help="the signed task of the epoch that ends")],
    holder: Annotated[list[Path], typer.Option(help="a key holder's new credential; once for each, in order")],
    model: Annotated[Path, typer.Option(help="the model to begin with, safetensors: 'he-client model' saves one")],
    out: Annotated[Path, typer.Option(help="where to write the signed task")],
    directory: AuthorityDir = Path("authority"),
    passphrase: Passphrase = "",
) -> None:
    """Sign a task's next epoch: the same plan, new keys. Its privacy budget adds to those of the epochs before."""
    key = read_private(directory / AUTHORITY_KEY, KeyRecord, passphrase).signing
    before = Task.from_token(_text(last), key.public).config
    tensors = _tensors(model)
    if {name: value.shape for name, value in tensors.items()} != {spec.name: spec.shape for spec in before.tensors}:
        raise Refusal(BAD_TENSORS, f"{model} does not have the tensors of {before.name!r}")
    config = next_epoch(before, [_text(path) for path in holder], key.public, model_digest(tensors))
    _write(out, key.sign(config))
    _describe(config, out)


@app.command("init")
@command
def init(
    name: Annotated[str, typer.Option(help="lower-case name, as the task's committee will list it")],
    data_dir: DataDir = None,
    passphrase: Passphrase = "",
) -> None:
    """Make a key holder's signing and HPKE keys, and the request to send to the authority."""
    settings = Settings.load(data_dir=data_dir)
    new_holder(settings.data_dir, name, time.time(), passphrase)
    console.out.print(f"keys in {settings.data_dir}; send enroll-request.jws to the authority")


@app.command("keygen")
@command
def keygen(
    task: Annotated[str, typer.Argument(help="the task's name or hash")],
    server: Annotated[str, typer.Option(help="the server's URL")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    patience: Annotated[float, typer.Option(help="seconds to wait for the others in each phase")] = 600,
    passphrase: Passphrase = "",
) -> None:
    """Join a task: check what it promises, agree to open its sums, and make the committee's key with the others."""
    settings = Settings.load(config, data_dir=data_dir, tls_ca=tls_ca, passphrase=passphrase or None)
    run_async(_keygen(settings, task, server, patience))


@app.command("run")
@command
def run(
    data_dir: DataDir = None,
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    floor: Annotated[int | None, typer.Option(help="our own minimum of clients per sum")] = None,
    poll_seconds: Annotated[float | None, typer.Option(help="how often to ask the server")] = None,
    passphrase: Passphrase = "",
) -> None:
    """Serve the joined tasks: judge every manifest, release shares. Makes outbound requests only."""
    settings = Settings.load(
        config, data_dir=data_dir, tls_ca=tls_ca, floor=floor, poll_seconds=poll_seconds, passphrase=passphrase or None
    )
    run_async(_run(settings))


@app.command("status")
@command
def status(data_dir: DataDir = None, passphrase: Passphrase = "", form: OutputFormat = "text") -> None:
    """Joined tasks, their committees and keys, and how much of their budgets is used, as far as this holder has seen.

    openings: the highest number of an opening in this holder's votes. votes: how many of them it has voted for itself,
    or released a share of; it may have been away for the others.
    """
    settings = Settings.load(data_dir=data_dir, passphrase=passphrase or None)
    console.show(run_async(_status(settings)), form, "joined tasks")


@app.command("ledger")
@command
def ledger(data_dir: DataDir = None, passphrase: Passphrase = "", form: OutputFormat = "text") -> None:
    """Every manifest that this holder voted for or refused, and whether its share has left."""
    settings = Settings.load(data_dir=data_dir, passphrase=passphrase or None)
    console.show(run_async(_ledger(settings)), form, "decisions")


async def _keygen(settings: Settings, name: str, server: str, patience: float) -> None:
    holder = await open_holder(settings)
    try:
        async with Transport(server, holder.identity, tls=settings.tls) as transport:
            memory = TaskMemory(settings.data_dir / MEMORY_FILE, holder.identity.authority)
            for joined, _ in await joined_tasks(holder):
                await asyncio.to_thread(memory.learn, joined)
            task = await transport.task(name, memory)
            await holder.join(task, server)
            console.out.print(f"joined {task.config.name!r} ({task.id[:16]}...)\n{describe(task.committee)}")
            if task.scheme.ceremony:
                work = Ceremony(holder, task, transport, patience=patience, progress=console.err.print)
                console.out.print(f"joint key {(await work.run()).hex()}")
    finally:
        await holder.ledger.close()


async def _run(settings: Settings) -> None:
    holder = await open_holder(settings)
    agents = [
        Agent(
            holder,
            task,
            url,
            poll_seconds=settings.poll_seconds,
            destroy_after=settings.destroy_after,
            tls=settings.tls,
        )
        for task, url in await joined_tasks(holder)
        if await _served(holder, task)
    ]
    if not agents:
        await holder.ledger.close()
        raise Refusal(BAD_PLAN, "no task to serve; 'he-keys keygen' joins one")
    work = asyncio.ensure_future(serve(holder, agents))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        console.err.print("stopped")


async def _served(holder: KeyHolder, task: Task) -> bool:
    """Not so an epoch whose keys are gone, or belong to the ledger that a restored one is a copy of."""
    state = await state_of(holder, task)
    if state == "open":
        return True
    if state == "destroyed":
        await destroy(holder, task)  # finishes what a crash may have cut short
    console.err.print(f"{task.config.name}, epoch {task.config.epoch}: {state}, not served")
    return False


async def _status(settings: Settings) -> list[dict[str, object]]:
    holder = await open_holder(settings)
    rows: list[dict[str, object]] = []
    for task, url in await joined_tasks(holder):
        votes = await holder.ledger.votes(task.hash)
        used = votes[-1].opening if votes else 0
        rows.append(
            {
                "task": task.config.name,
                "epoch": task.config.epoch,
                "state": await state_of(holder, task),
                "server": url,
                "keys": "not needed" if not task.scheme.ceremony else holder.secret_path(task, "key").exists(),
                "committee": str(task.committee),
                "f": task.committee.colluders,
                "openings": used,
                "votes": len(votes),
                "max_openings": task.config.max_openings,
                "model_version": votes[-1].model_version if votes else 0,
                "epsilon": round(epsilon(task.config.privacy, used), 4),
                "epsilon_budget": task.config.privacy.epsilon_budget,
            }
        )
    await holder.ledger.close()
    return rows


async def _ledger(settings: Settings) -> list[dict[str, object]]:
    holder = await open_holder(settings)
    rows: list[tuple[float, dict[str, object]]] = []
    for task, _ in await joined_tasks(holder):
        name = task.config.name
        for vote in await holder.ledger.votes(task.hash):
            left = "not settled" if vote.settled is None else "settled"
            text = f"opening {vote.opening}: {vote.updates} updates on model {vote.model_version}, {left}"
            rows.append((vote.decided, _decision(name, vote.round, "voted", vote.manifest_hash, text)))
        for refusal in await holder.ledger.refusals(task.hash):
            rows.append(
                (refusal.seen, _decision(name, refusal.round, refusal.problem, refusal.manifest_hash, refusal.detail))
            )
    await holder.ledger.close()
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _decision(task: str, number: int, decision: str, manifest: bytes, detail: str) -> dict[str, object]:
    return {"task": task, "round": number, "decision": decision, "manifest": manifest.hex(), "detail": detail}


def _describe(config: TaskConfig, out: Path) -> None:
    console.out.print(
        f"task {config.name!r}, epoch {config.epoch}, {config.scheme}/{config.profile},"
        f" scale 2^{config.scale.hex().split('p')[1]}: {out}\n"
        f"{describe(committee_of(config))}"
    )


def _tensors(model: Path) -> dict[str, npt.NDArray[np.float32]]:
    try:
        found: dict[str, npt.NDArray[np.float32]] = load_file(model)
    except Exception as error:  # safetensors raises its own untyped errors
        raise Refusal(BAD_PLAN, f"cannot read the model {model}: {error}") from None
    if wrong := [name for name, value in found.items() if value.dtype != np.float32]:
        raise Refusal(BAD_TENSORS, f"{model}, {', '.join(wrong)[:200]}", expected="float32")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(BAD_PLAN, f"cannot read {path}: {error}") from None


def _write(path: Path, token: str) -> None:
    try:
        path.write_text(token + "\n")
    except OSError as error:
        raise Refusal(BAD_SETTINGS, f"cannot write {path}: {error.strerror}") from None
