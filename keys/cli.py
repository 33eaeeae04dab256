"""`he-keys`: the authority's offline commands, and a key holder's."""

from __future__ import annotations

import asyncio
import signal
import time
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from safetensors import safe_open

from he_client import console
from he_client.console import Format, command, run_async
from he_client.identity import AUTHORITY_FILE, KEY_FILE, Identity, create
from he_client.transport import Transport
from he_protocol.keyfile import KeyRecord, read_private, write_private
from he_protocol.messages import Name, Role
from he_protocol.privacy import epsilon
from he_protocol.problems import BAD_PLAN, BAD_SETTINGS, Refusal
from he_protocol.sharing import Sharing
from he_protocol.signing import SigningKey, jwk_x
from he_protocol.task import TensorSpec
from keys.agent import Agent, joined_tasks, serve
from keys.authority import build_config, enrol
from keys.holder import KeyHolder
from keys.hpke_key import HpkeKey
from keys.keygen import Ceremony
from keys.ledger import Ledger
from keys.settings import Settings

app = typer.Typer(help="Authority and key holders of HushSum.", no_args_is_help=True, pretty_exceptions_enable=False)
authority_app = typer.Typer(help="The authority: an offline key that enrols everybody.", no_args_is_help=True)
task_app = typer.Typer(help="Tasks, as the authority signs them.", no_args_is_help=True)
app.add_typer(authority_app, name="authority")
app.add_typer(task_app, name="task")

AuthorityDir = Annotated[Path, typer.Option("--authority-dir", help="where the authority's key lives")]
DataDir = Annotated[Path | None, typer.Option(help="identity, secrets and ledger [HUSHSUM_KEYS_DATA_DIR]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML settings file")]
TlsCa = Annotated[Path | None, typer.Option(help="PEM file that vouches for the server's certificate")]
Passphrase = Annotated[
    str, typer.Option(envvar="HUSHSUM_PASSPHRASE", help="protects the key file; better set by environment")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="text or json")]
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
    directory: AuthorityDir = Path("authority"),
    passphrase: Passphrase = "",
) -> None:
    """Certify a party: read its signed request, write its credential (a JWT)."""
    key = read_private(directory / AUTHORITY_KEY, KeyRecord, passphrase).signing
    _write(out, enrol(key, _text(request), role, now=time.time(), days=days))
    console.out.print(f"credential for role {role}, valid {days:g} days: {out}")


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
    config = build_config(fields, _tensor_specs(model), _text(server), holders, key.public)
    _write(out, key.sign(config))
    sharing = Sharing(len(config.holders), config.threshold)
    console.out.print(
        f"task {config.name!r}, {config.scheme}/{config.profile}, scale 2^{config.scale.hex().split('p')[1]}: {out}\n"
        f"privacy holds against {sharing.privacy_bound} colluding holders;"
        f" one round stays one sum against {sharing.fork_bound}"
    )


@app.command("init")
@command
def init(
    name: Annotated[str, typer.Option(help="lower-case name, as the task's committee will list it")],
    data_dir: DataDir = None,
    passphrase: Passphrase = "",
) -> None:
    """Make a key holder's signing and HPKE keys, and the request to send to the authority."""
    settings = Settings.load(data_dir=data_dir)
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise Refusal(BAD_SETTINGS, f"--name {name!r}: {error}") from None
    hpke = HpkeKey.generate()
    create(settings.data_dir, name, "holder", time.time(), passphrase=passphrase, hpke=(hpke.public, hpke.private))
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
    """Joined tasks, their keys, and how much of their budgets is used."""
    settings = Settings.load(data_dir=data_dir, passphrase=passphrase or None)
    console.show(run_async(_status(settings)), form, "joined tasks")


@app.command("ledger")
@command
def ledger(data_dir: DataDir = None, passphrase: Passphrase = "", form: OutputFormat = "text") -> None:
    """Every manifest that this holder accepted or refused."""
    settings = Settings.load(data_dir=data_dir, passphrase=passphrase or None)
    console.show(run_async(_ledger(settings)), form, "decisions")


async def _holder(settings: Settings) -> KeyHolder:
    secret = settings.passphrase.get_secret_value()
    record = read_private(settings.data_dir / KEY_FILE, KeyRecord, secret)
    return KeyHolder(
        identity=Identity.load(settings.data_dir, secret),
        hpke=HpkeKey(record.hpke),
        ledger=await Ledger.open(settings.data_dir / "ledger.db"),
        directory=settings.data_dir,
        floor=settings.floor,
        passphrase=secret,
    )


async def _keygen(settings: Settings, name: str, server: str, patience: float) -> None:
    holder = await _holder(settings)
    try:
        async with Transport(server, holder.identity, tls=settings.tls) as transport:
            task = await transport.task(name)
            await holder.join(task, server)
            console.out.print(f"joined {task.config.name!r} ({task.id[:16]}...)")
            if task.scheme.ceremony:
                work = Ceremony(holder, task, transport, patience=patience, progress=console.err.print)
                console.out.print(f"joint key {(await work.run()).hex()}")
    finally:
        await holder.ledger.close()


async def _run(settings: Settings) -> None:
    holder = await _holder(settings)
    agents = [
        Agent(holder, task, url, poll_seconds=settings.poll_seconds, tls=settings.tls)
        for task, url in await joined_tasks(holder)
    ]
    if not agents:
        await holder.ledger.close()
        raise Refusal(BAD_PLAN, "no task joined yet; 'he-keys keygen' joins one")
    work = asyncio.ensure_future(serve(holder, agents))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        console.err.print("stopped")


async def _status(settings: Settings) -> list[dict[str, object]]:
    holder = await _holder(settings)
    rows: list[dict[str, object]] = []
    for task, url in await joined_tasks(holder):
        used = len(await holder.ledger.openings(task.hash))
        rows.append(
            {
                "task": task.config.name,
                "epoch": task.config.epoch,
                "server": url,
                "keys": "not needed" if not task.scheme.ceremony else holder.secret_path(task, "key").exists(),
                "openings": used,
                "max_openings": task.config.max_openings,
                "epsilon": round(epsilon(task.config.privacy, used), 4),
                "epsilon_budget": task.config.privacy.epsilon_budget,
            }
        )
    await holder.ledger.close()
    return rows


async def _ledger(settings: Settings) -> list[dict[str, object]]:
    holder = await _holder(settings)
    rows: list[tuple[float, dict[str, object]]] = []
    for task, _ in await joined_tasks(holder):
        name = task.config.name
        for opening in await holder.ledger.openings(task.hash):
            text = f"{opening.updates} updates on model {opening.model_version}"
            rows.append((opening.decided, _decision(name, opening.round, "accepted", opening.manifest_hash, text)))
        for refusal in await holder.ledger.refusals(task.hash):
            rows.append(
                (refusal.seen, _decision(name, refusal.round, refusal.problem, refusal.manifest_hash, refusal.detail))
            )
    await holder.ledger.close()
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _decision(task: str, number: int, decision: str, manifest: bytes, detail: str) -> dict[str, object]:
    return {"task": task, "round": number, "decision": decision, "manifest": manifest.hex(), "detail": detail}


def _tensor_specs(model: Path) -> list[TensorSpec]:
    try:
        with safe_open(model, "numpy") as file:
            return [TensorSpec(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    except Exception as error:  # safetensors raises its own untyped errors
        raise Refusal(BAD_PLAN, f"cannot read the model {model}: {error}") from None


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
