"""A full disk, a database that is gone, bugs: refused with a name, and the server goes on serving."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from aiohttp import ClientResponse

from he_protocol import frames, paths, problems
from he_protocol.errors import ProblemError
from he_protocol.messages import Contribution
from he_server.blobs.local import LocalWriter
from he_server.services.context import ServerContext
from he_server.store.address import Address
from he_server.store.rounds import RoundStore
from he_server.store.tasks import TaskStore

from .world import World, initial_model


def _full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_during_fsync(world: World, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)

    def full(_descriptor: int) -> None:
        raise OSError(code, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert await world.problem(await world.put(ada, upload)) == problems.DISK_FULL
    root = world.server.settings.data_dir / "blobs"
    assert list((root / "partial").iterdir()) == []
    assert (await world.put(ada, upload)).status == 201


async def test_a_full_disk_during_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, _data: bytes) -> None:
            _full()

        def close(self) -> None:
            self._file.close()

    original = LocalWriter.__init__

    def replaced(self: LocalWriter, *args: Any) -> None:
        original(self, *args)
        self._file = Full(self._file)  # type: ignore[assignment]

    ada = world.person("ada", "client")
    with monkeypatch.context() as patch:
        patch.setattr(LocalWriter, "__init__", replaced)
        assert await world.problem(await world.put(ada, world.upload(ada))) == problems.DISK_FULL
        assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.DISK_FULL
    assert (await world.call(None, "GET", "/readyz")).status == 200


async def test_a_full_disk_puts_a_round_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.fill(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        await world.work()
    assert (await world.round(1)).opening == 0
    world.clock.now += world.server.settings.lease_seconds
    await world.work()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        await world.screen(1)
    assert (await world.round(1)).state == "closed"
    world.clock.now += world.server.settings.lease_seconds
    await world.work()
    assert (await world.round(1)).state == "opening"


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:////nonexistent/server.db", "postgresql+asyncpg://nobody@127.0.0.1:1/none"]
)
async def test_a_database_that_is_gone_and_comes_back(world: World, url: str) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    async with world.other_database(Address.read(url)):
        response = await world.put(ada, upload)
        assert response.headers["Retry-After"] == "1"
        assert await world.problem(response) == problems.DATABASE_UNAVAILABLE
        assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.DATABASE_UNAVAILABLE
        assert (await world.call(None, "GET", "/healthz")).status == 200
    assert (await world.put(ada, upload)).status == 201


async def test_a_database_without_a_schema(world: World) -> None:
    async with world.other_database(Address.of_file(world.server.settings.data_dir / "empty.db")):
        assert await world.problem(await world.call(None, "GET", paths.TASKS)) == problems.DATABASE_UNAVAILABLE


async def test_a_bug_is_logged_and_not_told(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(_self: TaskStore) -> None:
        raise ZeroDivisionError("the secret reason")

    with monkeypatch.context() as patch:
        patch.setattr(TaskStore, "all", broken)
        response = await world.call(None, "GET", paths.TASKS)
        assert "secret reason" not in await response.text()
        assert await world.problem(response) == problems.INTERNAL
    assert "the secret reason" in capsys.readouterr().out
    assert (await world.call(None, "GET", paths.TASKS)).status == 200


async def test_a_client_that_hangs_up_leaves_nothing(world: World) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    path = paths.update_path(world.task.id, upload.id.hex())
    from he_protocol.identity.requests import prove_request

    headers = prove_request(
        ada.key, ada.credential, audience="aggregator", method="PUT", path=path, now=world.clock(), jti="1"
    )
    _, writer = await asyncio.open_connection(world.http.host, world.http.port)
    lines = [f"PUT {path} HTTP/1.1", "Host: test", f"Content-Length: {len(upload.frame)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + upload.frame[:200_000])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(20):
        await world.server.drain.idle.wait()
        while world.server.drain.in_flight or list((world.server.settings.data_dir / "blobs" / "partial").iterdir()):
            await asyncio.sleep(0.01)
    assert (await world.round(1)).updates == 0
    assert (await world.put(ada, upload)).status == 201


async def test_the_worker_survives_errors_and_readiness_watches_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from he_server.jobs import worker

    monkeypatch.setattr(worker, "ERROR_PAUSE_SECONDS", 0.01)
    calls = 0

    async def flaky(_self: RoundStore) -> tuple[()]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        if calls == 2:
            raise ProblemError(problems.DATABASE_UNAVAILABLE, "gone")
        return ()

    monkeypatch.setattr(RoundStore, "live", flaky)
    server: ServerContext = world.server
    stop = asyncio.Event()
    server.worker = asyncio.create_task(world.worker.run(stop))
    async with asyncio.timeout(20):
        while calls < 4:
            await asyncio.sleep(0.01)
    assert (await world.call(None, "GET", "/readyz")).status == 200
    stop.set()
    await server.worker
    assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.INTERNAL


@pytest.mark.parametrize("fails_at", range(4))
async def test_a_full_disk_at_every_durable_write(world: World, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """Of an update and of its fold: nothing is acknowledged or lost, and the next try succeeds."""
    people = [world.person(name, "client") for name in ("dan", "eve", "fay")]
    uploads = [world.upload(person) for person in people]
    original, calls = LocalWriter.commit, 0

    def commit(self: LocalWriter, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls % 4 == fails_at:
            raise ProblemError(problems.DISK_FULL, "nothing was stored") from OSError(errno.ENOSPC, "full")
        original(self, name)

    monkeypatch.setattr(LocalWriter, "commit", commit)
    for person, upload in zip(people, uploads, strict=True):
        while (answer := await world.put(person, upload)).status != 201:
            assert await world.problem(answer) == problems.DISK_FULL
    async with asyncio.timeout(20):
        await world.work()
        while not (await world.round(1)).opening:
            world.clock.now += world.server.settings.lease_seconds
            await world.work()
        await world.screen(1)
        while (await world.round(1)).state == "closed":
            world.clock.now += world.server.settings.lease_seconds
            await world.work()
    _, manifest = await world.manifest(1)
    assert {entry.update_id for entry in manifest.updates} == {upload.id for upload in uploads}


async def test_a_full_disk_refuses_shares_posts_and_models(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused by name, leaves nothing behind, and succeeds when sent again."""
    await world.fill(3)
    await world.certify(1)
    holder = world.holders[0]
    share = await world.share(0, 1)
    task = frames.start(world.authority.sign(world.config(epoch=2)).encode()) + initial_model(world.config())
    contribution = Contribution(world.task.hash, 1, holder.name, boxes=())
    frame = frames.start(holder.key.sign(contribution).encode())
    board = paths.post_path(world.task.id, "contribution", holder.name)

    async def send() -> list[ClientResponse]:
        return [
            await world.put_share(0, 1, share),
            await world.call(holder, "PUT", board, data=frame),
            await world.call(None, "POST", paths.TASKS, data=task),
        ]

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert [await world.problem(answer) for answer in await send()] == [problems.DISK_FULL] * 3
    assert list((world.server.settings.data_dir / "blobs" / "partial").iterdir()) == []
    assert [answer.status for answer in await send()] == [201] * 3


async def test_a_full_disk_puts_a_publication_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.fill(3)
    await world.certify(1)
    with monkeypatch.context() as patch:
        for index in range(3):
            assert (await world.put_share(index, 1, await world.share(index, 1))).status == 201
        patch.setattr(os, "fsync", _full)
        await world.work()
    assert (await world.round(1)).state == "opening"
    world.clock.now += world.server.settings.lease_seconds
    await world.work()
    assert (await world.round(1)).state == "published"
