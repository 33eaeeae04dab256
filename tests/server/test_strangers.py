"""Parties that have not proved who they are take nothing that clients need, and leave nothing behind."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from safetensors.numpy import load, save

from he_protocol import frames, paths, problems
from he_protocol.errors import ProblemError
from he_protocol.headers import METHOD_OVERRIDE
from he_protocol.task import Task
from he_server.jobs.garbage import collect_garbage
from he_server.rules.admission import Limits
from he_server.rules.bodies import check_codings, check_declared, update_frame
from he_server.services import strangers
from he_server.services.backpressure import AdmissionController
from he_server.services.context import PROBE_SECONDS
from he_server.services.strangers import BodyBudget, RateLimiter, has_slot
from he_server.store.revocations import RevocationStore
from he_server.store.tasks import TaskStore
from tests.support.revocations import revoked

from .world import World, initial_model


def files(world: World) -> set[Path]:
    blobs = world.server.settings.data_dir / "blobs"
    return {path for place in ("models", "partial", "board") for path in (blobs / place).rglob("*") if path.is_file()}


async def _trickle(world: World, stack: AsyncExitStack, sent: bytes) -> asyncio.StreamReader:
    """A request that has begun, and of which no more comes."""
    before = world.server.drain.in_flight
    reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
    stack.callback(writer.close)
    writer.write(sent)
    async with asyncio.timeout(20):
        while world.server.drain.in_flight == before:
            await asyncio.sleep(0.01)
    return reader


SLOW_TASK = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n\0\0\4\0"


async def test_a_stranger_reserves_nothing_of_the_uploads_room(world: World) -> None:
    async with AsyncExitStack() as stack:
        await _trickle(world, stack, SLOW_TASK)
        load = await world.server.admission.load()
        assert (load.uploads, load.arriving) == (0, 0)
        ada = world.person("ada", "client")
        assert (await world.put(ada, world.upload(ada))).status == 201


async def test_who_is_refused_was_never_admitted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No slot and no byte for an upload without a proof: not even while its signature is checked."""

    def never(*_: object) -> None:
        raise AssertionError("a stranger was admitted")

    monkeypatch.setattr(world.server.admission, "admit", never)
    path = paths.update_path(world.task.id, "0" * 32)
    forged = world.person("ada", "client")
    forged.key = world.person("eve", "client").key
    for who in (None, forged):
        assert (await world.call(who, "PUT", path, data=bytes(1000))).status == 401
    tus = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    for method, named in (("PATCH", {}), ("POST", {METHOD_OVERRIDE: "PATCH"})):
        answer = await world.call(None, method, paths.upload_path("0" * 32), data=bytes(10), headers=tus | named)
        assert await world.problem(answer) == problems.NOT_FOUND


async def test_an_upload_counts_for_what_its_task_takes(world: World) -> None:
    ada = world.person("ada", "client")
    most = update_frame(world.task)
    assert most < 1 << 20
    assert check_declared(None, most) == most
    assert check_declared(10, most) == 10
    path = paths.update_path(world.task.id, "0" * 32)
    answer = await world.call(ada, "PUT", path, data=bytes(most + 1))
    assert (await world.refused(answer)).expected == f"at most {most} bytes"


@pytest.mark.parametrize(
    ("content", "transfer", "taken"),
    [
        ((), (), True),
        (("Identity",), ("chunked",), True),
        (("gzip",), (), False),
        (("identity, br",), (), False),
        (("identity", "deflate"), (), False),
        ((), ("gzip, chunked",), False),
        (("",), (), False),
    ],
)
def test_codings(content: tuple[str, ...], transfer: tuple[str, ...], taken: bool) -> None:
    if taken:
        check_codings(content, transfer)
        return
    with pytest.raises(ProblemError) as caught:
        check_codings(content, transfer)
    assert caught.value.problem == problems.UNKNOWN_CODING


async def test_a_head_that_does_not_come_ends_soon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "PROOF_SECONDS", 0.2)
    async with AsyncExitStack() as stack:
        reader = await _trickle(world, stack, SLOW_TASK)
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"no proof came in time")
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_strangers_share_a_few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "TURN_SECONDS", 0.05)
    bodies = BodyBudget()
    async with AsyncExitStack() as stack:
        for _ in range(strangers.SLOTS_OF_ADDRESS):
            await stack.enter_async_context(bodies.admit("a", 1))
        for address, size in (("a", 1), ("b", strangers.BODY_BYTES)):
            with pytest.raises(ProblemError) as caught:
                await bodies.admit(address, size).__aenter__()
            assert caught.value.problem == problems.OVERLOADED
        async with bodies.admit("b", 1):
            pass
    async with bodies.admit("a", strangers.BODY_BYTES):
        pass
    assert not has_slot(strangers.SLOTS, 0, 0)
    assert has_slot(strangers.SLOTS - 1, 0, 0)


async def test_a_known_task_with_another_model_leaves_no_file(world: World) -> None:
    before = files(world)
    for value in (1.0, 2.0):
        body = frames.start(world.task.token.encode()) + initial_model(world.task.config, value)
        assert await world.problem(await world.call(None, "POST", paths.TASKS, data=body)) == problems.DIGEST_MISMATCH
    assert files(world) == before


async def test_a_known_task_is_not_even_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.server.blobs, "writer", None)
    body = frames.start(world.task.token.encode()) + initial_model(world.task.config)
    assert (await world.call(None, "POST", paths.TASKS, data=body)).status == 200


async def test_a_new_task_that_is_refused_leaves_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.config(name="second")
    head, model = frames.start(world.authority.sign(config).encode()), initial_model(config)
    before = files(world)
    odd = save({name: value.T.copy() for name, value in load(model).items()} | {"extra": load(model)["b"]})
    for body in (model[:-4], model + b"more", model[:-4] + b"\0\0\x80\x7f", odd, model[:8] + b" " + model[8:]):
        assert (await world.call(None, "POST", paths.TASKS, data=head + body)).status == 400
    assert files(world) == before

    async def refused(*_: object) -> bool:
        raise ProblemError(problems.BAD_TENSORS, "somebody was first")

    monkeypatch.setattr(TaskStore, "add", refused)
    assert (await world.call(None, "POST", paths.TASKS, data=head + model)).status == 400
    assert files(world) == before


async def test_a_new_tasks_model_is_taken_when_the_disk_has_room(world: World) -> None:
    config = world.config(name="second")
    head, model = frames.start(world.authority.sign(config).encode()), initial_model(config)
    world.server.admission = AdmissionController(Limits(1 << 20, 1 << 60, 2, 2, 0.0), world.server.admission._measure)
    assert await world.problem(await world.call(None, "POST", paths.TASKS, data=head + model)) == problems.OVERLOADED


async def test_one_writes_a_tasks_model_at_a_time(world: World) -> None:
    config = world.config(name="second")
    token = world.authority.sign(config)
    task = Task.from_token(token, world.authority.public)
    world.server.adding.add(task.id)
    body = frames.start(token.encode()) + initial_model(config)
    assert await world.problem(await world.call(None, "POST", paths.TASKS, data=body)) == problems.OVERLOADED
    world.server.adding.discard(task.id)
    assert (await world.call(None, "POST", paths.TASKS, data=body)).status == 201


async def test_what_no_row_refers_to_is_swept_from_models_and_board(world: World) -> None:
    await world.fill(3)
    await world.work()
    await world.open(1)
    before = files(world)
    names = [f"models/{world.task.id}/{'0' * 64}", f"models/{'1' * 64}/x", f"board/{world.task.id}/left"]
    for name in names:
        world.server.blobs.put(name, b"left behind")
    assert len(files(world)) == len(before) + 3
    await collect_garbage(world.server, -1.0)
    assert files(world) == before


async def test_the_list_that_is_known_costs_no_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    eve = world.person("eve", "client").credential
    older, token = (revoked(world.authority, eve, number=n, now=world.clock()).token for n in (1, 2))
    assert (await world.call(None, "PUT", paths.REVOCATIONS, data=token)).status == 201
    await world.server.revocations.current()
    monkeypatch.setattr(RevocationStore, "learn", None)
    assert (await world.call(None, "PUT", paths.REVOCATIONS, data=token)).status == 200
    assert await world.problem(await world.call(None, "PUT", paths.REVOCATIONS, data=older)) == problems.OLD_REVOCATIONS


async def test_readiness_looks_at_the_disk_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, now = [], [0.0]
    monkeypatch.setattr(world.server.blobs, "probe", lambda: looks.append(now[0]))
    monkeypatch.setattr(world.server.probe, "_monotonic", lambda: now[0])
    for now[0] in (0.0, PROBE_SECONDS * 0.99, PROBE_SECONDS):
        answers = await asyncio.gather(*(world.call(None, "GET", "/readyz") for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
    assert looks == [0.0, PROBE_SECONDS]


async def test_strangers_wait_for_their_turn_and_newcomers_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    limiter = RateLimiter(20.0, lambda: now)
    for _ in range(int(20.0 * strangers.BURST_SECONDS)):
        await limiter.take(0)
    order = []

    async def ask(asked: int) -> None:
        await limiter.take(asked)
        order.append(asked)

    waiting = [asyncio.create_task(ask(asked)) for asked in (5, 3, 0)]
    await asyncio.sleep(0.1)
    assert order == []
    for _ in waiting:
        limiter.give_back()  # as if a client had turned out to be one
    await asyncio.gather(*waiting)
    assert order == [0, 3, 5]
    monkeypatch.setattr(strangers, "TURN_SECONDS", 0.05)
    with pytest.raises(ProblemError) as caught:
        await limiter.take(0)
    assert caught.value.problem == problems.OVERLOADED
    now = 1.0
    await limiter.take(0)


async def test_a_client_never_waits_for_strangers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "TURN_SECONDS", 0.05)
    ada = world.person("ada", "client")
    path = f"{paths.task_path(world.task.id)}/rounds"
    assert (await world.call(ada, "GET", path)).status == 200
    world.server.stranger_requests = RateLimiter(0.001)  # one request, and the next in an hour
    known = [(await world.call(ada, "GET", path)).status for _ in range(5)]  # its connection has proved who it is
    assert known == [200] * 5
    async with AsyncExitStack() as stack:
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        statuses = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
            stack.callback(writer.close)
            writer.write(request)
            async with asyncio.timeout(20):
                statuses.append(int((await reader.readline()).split()[1]))
        assert statuses == [200, 429]


async def test_a_wrong_proof_makes_a_stranger_of_a_client(world: World) -> None:
    ada = world.person("ada", "client")
    path = f"{paths.task_path(world.task.id)}/rounds"
    assert (await world.call(ada, "GET", path)).status == 200
    assert len(world.server.connections._strangers) == 0
    ada.key = world.person("eve", "client").key
    assert (await world.call(ada, "GET", path)).status == 401
    assert len(world.server.connections._strangers) == 1


async def test_a_large_refused_body_is_not_read(world: World) -> None:
    async with AsyncExitStack() as stack:
        reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
        stack.callback(writer.close)
        writer.write(b"PUT /v1/revocations HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        async with asyncio.timeout(20):
            assert int((await reader.readline()).split()[1]) == 413
        sent = 0
        while (before := sent) < 1 << 25:  # more than the sockets' own buffers hold
            writer.write(bytes(1 << 16))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await writer.drain()
                    sent += 1 << 16
            if sent == before:
                break
        assert sent < 1 << 25
        writer.transport.abort()
