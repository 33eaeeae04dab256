"""`he-holder rotate`, `destroy-epoch`, `backup` and `restore`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from he_holder.cli.options import DataDir, TlsCa, open_holder
from he_party import console
from he_party.console import OutputFormat, command, run_async
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND

if TYPE_CHECKING:
    from he_holder.holder import KeyHolder
    from he_holder.settings import Settings
    from he_protocol.task import Task

app = typer.Typer()


@app.command("rotate")
@command
def rotate_(data_dir: DataDir = None) -> None:
    """Make a new HPKE key for the next epoch. Joined tasks go on with theirs until their epoch ends."""
    from he_holder.keyring import rotate
    from he_holder.settings import Settings
    from he_party.keyfile import environment_passphrase

    settings = Settings.load(data_dir=data_dir)
    rotate(settings.data_dir, time.time(), environment_passphrase(), group_may_read=settings.group_readable_keys)
    console.out.print(
        f"new key in {settings.data_dir}\n"
        "1. send enroll-request.jws to the authority: he-authority enroll ... --renews <the old credential>\n"
        "2. replace credential.jws by its answer\n"
        "3. once the authority has signed the next epoch (he-authority task next): he-holder join,"
        " and restart he-holder run\n"
        "4. once the old epoch has ended: he-holder destroy-epoch"
    )


@app.command("leave")
@command
def leave(
    task: Annotated[str, typer.Argument(help="the task's name; of several epochs the hash, or how it begins")],
    data_dir: DataDir = None,
) -> None:
    """Serve a task no more. Its keys stay, and 'he-holder join' takes it up again; destroy-epoch ends it for ever.

    A running 'he-holder run' sees it within a second. To the others this holder is away.
    """
    from he_holder.settings import Settings

    console.out.print(f"left {run_async(_leave(Settings.load(data_dir=data_dir), task))}")


@app.command("destroy-epoch")
@command
def destroy_epoch(
    task: Annotated[str, typer.Argument(help="the task's name; of several epochs the hash, or how it begins")],
    data_dir: DataDir = None,
    tls_ca: TlsCa = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    force: Annotated[bool, typer.Option("--force", help="also while openings wait, or without the server")] = False,
    form: OutputFormat = "text",
) -> None:
    """Destroy this holder's keys of one epoch: what was encrypted under them can no longer be opened with this machine.

    Files are overwritten and removed, and the ledger never lets the epoch be opened again. Flash drives and snapshots
    may keep old blocks: there, what protects is the passphrase that the files were under.
    """
    from he_holder.settings import Settings

    settings = Settings.load(data_dir=data_dir, tls_ca=tls_ca)
    console.show(run_async(_destroy(settings, task, yes=yes, force=force)), form, "destroyed")


@app.command("backup")
@command
def backup_(
    file: Annotated[Path, typer.Argument(help="where to write it")],
    data_dir: DataDir = None,
) -> None:
    """Write identity and ledger into one file under the passphrase. Keys that open sums stay out of it."""
    from he_holder.settings import Settings

    settings = Settings.load(data_dir=data_dir)
    run_async(_backup(settings, file))
    console.out.print(f"backup in {file}; this holder goes on as before")


@app.command("restore")
@command
def restore_(
    file: Annotated[Path, typer.Argument(help="what 'he-holder backup' wrote")],
    directory: Annotated[Path, typer.Argument(help="a new directory")],
) -> None:
    """Make a holder from a backup, when the one that it is of is lost for good. It starts with the next epoch."""
    from he_holder.backup import restore
    from he_party.keyfile import environment_passphrase

    run_async(restore(file, directory, environment_passphrase(), time.time()))
    console.out.print(
        f"restored to {directory}, with a new key: the epochs that are running stay closed to it.\n"
        "Send enroll-request.jws to the authority, and join the next epoch. Never start the old holder again."
    )


async def _leave(settings: Settings, name: str) -> str:
    from he_holder.epochs import joined_tasks, state_of

    async with open_holder(settings) as holder:
        served = [(task, url) for task, url in await joined_tasks(holder) if await state_of(holder, task) == "open"]
        task, _ = _find(served, name)
        await holder.ledger.leave(task, time.time())
        return f"{task.config.name}, epoch {task.config.epoch}"


async def _destroy(settings: Settings, name: str, *, yes: bool, force: bool) -> list[dict[str, object]]:
    from he_holder.epochs import check_finished, destroy, hpke_path, joined_tasks, secrets_of
    from he_party.http_transport import HttpTransport

    async with open_holder(settings) as holder:
        task, url = _find(await joined_tasks(holder), name)
        if not force:
            async with HttpTransport(url, holder.identity, tls=settings.tls) as transport:
                await check_finished(holder, task, transport)
        files = await secrets_of(holder, task)
        if (key := hpke_path(holder, task)).exists() and key not in files:
            console.err.print("its HPKE key stays: another joined task uses it, and old ciphertexts can be opened")
        if not yes:
            console.err.print(f"{task.config.name}, epoch {task.config.epoch}, will be destroyed for ever, with:")
            for path in files:
                console.err.print(str(path), markup=False, soft_wrap=True)
            typer.confirm(await _question(holder, task), abort=True, err=True)
        await destroy(holder, task)
        return [{"task": task.config.name, "epoch": task.config.epoch, "file": str(path)} for path in files]


async def _question(holder: KeyHolder, task: Task) -> str:
    """An epoch that is running is another matter than one that is over."""
    most = task.config.rounds.max_openings
    used, _ = await holder.ledger.newest(task.hash)
    if used >= most:
        return "Destroy?"
    return (
        f"This epoch is not over: {most - used} of its {most} openings are left, as far as this holder has seen, and it"
        " could help with none of them any more. Destroy a running epoch?"
    )


def _find(joined: list[tuple[Task, str]], name: str) -> tuple[Task, str]:
    """The one of these of this name, or whose hash begins so; of several epochs of a name, only a hash will do."""
    found = [(task, url) for task, url in joined if task.config.name == name]
    found = found or [(task, url) for task, url in joined if name and task.id.startswith(name)]
    if len(found) != 1:
        listed = ", ".join(f"{task.id} ({task.config.name}, epoch {task.config.epoch})" for task, _ in found or joined)
        raise ProblemError(
            NOT_FOUND, f"{len(found)} joined tasks are called {name!r}", expected=f"one of {listed or 'none'}"
        )
    return found[0]


async def _backup(settings: Settings, file: Path) -> None:
    from he_holder.backup import backup

    async with open_holder(settings) as holder:
        await backup(holder, file)
