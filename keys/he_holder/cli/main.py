"""`he-holder`: a key holder's commands."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Annotated

import typer

from he_holder.agent import Agent, serve
from he_holder.ceremony.run import Ceremony
from he_holder.cli.epochs import app as life_cycle_app
from he_holder.cli.options import ConfigFile, DataDir, OutputFormat, TlsCa, open_holder
from he_holder.epochs import destroy, joined_tasks, state_of
from he_holder.holder import KeyHolder
from he_holder.keyring import new_holder
from he_holder.settings import Settings
from he_party import console
from he_party.console import Passphrase, command, run_async
from he_party.tasks import MEMORY_FILE, TaskMemory
from he_party.transport import Transport
from he_protocol.committee import describe
from he_protocol.errors import ProblemError
from he_protocol.privacy.plan import epsilon
from he_protocol.problems import BAD_PLAN
from he_protocol.task import Task

app = typer.Typer(help="A key holder of HushSum.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(life_cycle_app)


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


@app.command("join")
@command
def join(
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
    run_async(_join(settings, task, server, patience))


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


async def _join(settings: Settings, name: str, server: str, patience: float) -> None:
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
        raise ProblemError(BAD_PLAN, "no task to serve; 'he-holder join' joins one")
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
