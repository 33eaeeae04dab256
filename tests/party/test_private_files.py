"""Whatever the umask is, what programs keep is their owner's only; what was open before is closed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from he_authority.cli import app as authority_app
from he_client import HushSumClient
from he_client.cli import app as client_app
from he_client.spool import Spool
from he_holder.backup import backup, restore
from he_holder.cli.main import app as holder_app
from he_holder.holder import KeyHolder
from he_holder.keyring import Keyring
from he_holder.ledger import Ledger
from he_migrations.run import upgrade
from he_party import files
from he_party.files import close_database, close_to_others, private_directory, private_opener, write_durably
from he_party.http_transport import RetryPolicy
from he_protocol.task import Task
from he_server.blobs.upload_file import LocalUploads
from he_server.cli.main import app as server_app
from he_server.services.context import open_server
from he_server.services.migration import migrate
from he_server.settings import Settings
from tests.support.parties import NOW, World, random_integers
from tests.support.service import Service

PASSPHRASE = "a passphrase of some length"


@pytest.fixture(autouse=True)
def _careless() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(root: Path) -> list[str]:
    """Whatever under `root` somebody else may read, write or enter."""
    return sorted(
        f"{path.relative_to(root.parent)} {stat.S_IMODE(path.stat().st_mode):04o}"
        for path in [root, *root.rglob("*")]
        if path.stat().st_mode & 0o077
    )


def loosen(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)


def databases(root: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*.db*")}


async def test_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "holder" / "ledger.db"
    ledger = await Ledger.open(path)
    await ledger.joined()
    assert set(databases(tmp_path).values()) == {0o600}
    assert open_to_others(tmp_path / "holder") == []
    await ledger.close()
    loosen(tmp_path / "holder")
    ledger = await Ledger.open(path)
    assert open_to_others(tmp_path / "holder") == []
    await ledger.close()


async def test_without_it_a_ledger_is_open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_holder.ledger.close_database", lambda path: None)
    monkeypatch.setattr("he_holder.ledger.private_directory", lambda path: path.mkdir(parents=True, exist_ok=True))
    ledger = await Ledger.open(tmp_path / "holder" / "ledger.db")
    await ledger.close()
    assert len(open_to_others(tmp_path / "holder")) > 1


async def test_a_holders_folder_and_its_backup(tmp_path: Path) -> None:
    world, home = World(), tmp_path / "holder"
    holder = KeyHolder(world.committee[0], await Ledger.open(home / "ledger.db"), home, passphrase=PASSPHRASE)
    Keyring.of(home, PASSPHRASE).add(world.hpke[0])
    await holder.join(world.task, "http://server")
    await backup(holder, tmp_path / "backups" / "one")
    await holder.ledger.close()
    await restore(tmp_path / "backups" / "one", tmp_path / "again", PASSPHRASE, NOW)
    assert open_to_others(home) == open_to_others(tmp_path / "backups") == []
    assert set(databases(tmp_path / "again").values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) == 0o700


async def test_a_servers_folder(service: Service) -> None:
    data = service.settings.data_dir
    service.server.blobs.put("models/x", b"x")
    LocalUploads(data / "uploads").create("one")
    made = [data / "blobs", data / "uploads"]
    assert [line for folder in made for line in open_to_others(folder)] == []
    loosen(data)
    settings = Settings(data_dir=data)
    await migrate(settings)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert set(databases(data).values()) == {0o600}


async def test_a_new_servers_folder(tmp_path: Path, service: Service) -> None:
    new = tmp_path / "new" / "server"
    await migrate(Settings(data_dir=new))
    for name in ("server.key", "authority.pub"):
        write_durably(new / name, (service.settings.data_dir / name).read_bytes())
    server = open_server(Settings(data_dir=new))
    await server.store.database.ping()
    assert databases(new).keys() > {"server.db", "server.db-wal"}
    server.blobs.put("updates/y", b"y")
    assert open_to_others(tmp_path / "new") == []
    await server.store.close()
    await upgrade("server", Settings(data_dir=new).database.url)


async def test_a_clients_state(service: Service, tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    async with HushSumClient(service.url, service.identity(1), state_dir=state, clock=service.clock) as client:
        task = await client.task(service.task.id)
        await client.pull_model(task)
        values = random_integers(task.length, 1)
        await client.encrypt(task, lambda start, stop: values[start:stop], base_version=0)
        assert len(spool_of(state, task).pending()) == 1
    assert open_to_others(tmp_path / "new") == []
    loosen(state)
    retry = RetryPolicy(give_up=0)
    async with HushSumClient(
        service.url, service.identity(1), state_dir=state, clock=service.clock, retry=retry
    ) as client:
        await client.encrypt(task, lambda start, stop: values[start:stop], base_version=0)
    assert stat.S_IMODE((state / "updates" / task.id).stat().st_mode) == 0o700


def spool_of(state: Path, task: Task) -> Spool:
    return Spool(state / "updates", task.id, tuple(part.name for part in task.body))


def test_what_was_open_is_closed(tmp_path: Path) -> None:
    folder, file = tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"
    private_directory(folder)
    assert open_to_others(tmp_path / "a") == []
    with open(folder / "other", "wb", opener=private_opener):
        assert open_to_others(folder) == []
    file.write_bytes(b"old")
    close_database(folder / "some.db")
    (folder / "some.db").chmod(0o666)
    folder.chmod(0o777)
    assert len(open_to_others(folder)) == 3
    private_directory(folder)
    write_durably(file, b"new")
    close_database(folder / "some.db")
    assert open_to_others(folder) == []


def test_a_shared_folder_and_what_is_not_there_stay_as_they_are(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    close_to_others(shared)
    close_to_others(tmp_path / "nothing")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


@pytest.mark.parametrize("place", ["root", "top", "home", "mount"])
def test_a_folder_of_many_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Root who names / as a data directory does not lock everybody out of the machine."""
    closed: list[Path] = []
    monkeypatch.setattr(Path, "chmod", lambda path, mode: closed.append(path))
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    folders = {"root": Path("/"), "top": Path("/usr"), "home": folder, "mount": folder}
    if place == "home":
        monkeypatch.setattr(Path, "home", staticmethod(lambda: folder))
    if place == "mount":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    private_directory(folders[place])
    assert closed == []
    monkeypatch.setattr(files, "is_of_many", lambda _: False)
    private_directory(folders[place])
    assert closed == [folders[place]]


@pytest.mark.parametrize("program", [authority_app, client_app, holder_app, server_app])
def test_no_key_is_made_in_a_folder_that_has_others_in_it(tmp_path: Path, program: typer.Typer) -> None:
    shared = tmp_path / "shared"
    (shared / "somebody").mkdir(parents=True)
    shared.chmod(0o755)
    option = "--authority-dir" if program is authority_app else "--data-dir"
    named = [] if program is authority_app else ["--name", "party"]
    refused = CliRunner().invoke(program, ["init", *named, option, str(shared)])
    assert (refused.exit_code, "not a party's own" in " ".join(refused.stderr.split())) == (2, True)
    assert [path.name for path in shared.iterdir()] == ["somebody"]
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    (shared / "authority.pub").touch()  # a party's, which makes a new key
    assert CliRunner().invoke(program, ["init", *named, option, str(shared / "somebody")]).exit_code == 0
    assert CliRunner().invoke(program, ["init", *named, option, str(shared)]).exit_code == 0


def test_a_file_is_not_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path()):
        with pytest.raises(IsADirectoryError):
            files.write_durably(path, b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_of_somebody_else_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a volume that was mounted for us."""

    def not_ours(self: Path, mode: int) -> None:
        raise PermissionError

    (tmp_path / "volume").mkdir(mode=0o777)
    monkeypatch.setattr(Path, "chmod", not_ours)
    private_directory(tmp_path / "volume")


def test_an_identity_is_made_in_a_closed_folder(tmp_path: Path) -> None:
    from he_party.enrolling import create

    create(tmp_path / "phone", "phone-1", "client", NOW)
    assert stat.S_IMODE((tmp_path / "phone").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "phone" / "identity.key").stat().st_mode) == 0o600
