"""Back-pressure: what does not fit is refused before it is read, and comes in once there is room again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from he_protocol import paths, problems
from he_protocol.errors import ProblemError
from he_protocol.identity.requests import prove_request
from he_protocol.problems import ProblemType
from he_server.http import app, pacing
from he_server.http.pacing import draw_retry_after
from he_server.rules.admission import Limits, Load, Measured, backlog_limit, check_load, too_slow
from he_server.services import backpressure
from he_server.services.backpressure import AdmissionController

from .world import Person, Upload, World

LIMITS = Limits(ingest_bytes=100, min_free_bytes=1000, max_uploads=2, max_uploads_of_party=4, max_wait=0.0)
IDLE = Load(uploads=0, arriving=0, unfolded=0, free=10_000)


def _refused(work: object) -> ProblemType | None:
    try:
        assert callable(work)
        work()
    except ProblemError as refusal:
        return refusal.problem
    return None


@pytest.mark.parametrize(
    ("load", "size", "fits"),
    [
        (IDLE, 100, True),
        (IDLE, 5000, True),  # a model larger than the budget comes alone
        (replace(IDLE, arriving=1), 99, True),
        (replace(IDLE, arriving=1), 100, False),
        (replace(IDLE, unfolded=60), 40, True),
        (replace(IDLE, unfolded=60), 41, False),
        (replace(IDLE, arriving=50, unfolded=50), 1, False),
        (replace(IDLE, free=1100), 100, True),
        (replace(IDLE, free=1099), 100, False),
        (replace(IDLE, free=1150, arriving=60), 10, True),
        (replace(IDLE, free=1150, arriving=60), 31, True),
        (replace(IDLE, free=1090, arriving=60), 31, False),
    ],
)
def test_room(load: Load, size: int, fits: bool) -> None:
    assert _refused(lambda: check_load(load, size, LIMITS)) == (None if fits else problems.OVERLOADED)


def test_of_large_updates_only_a_few_wait() -> None:
    small, large, limit = 1 << 20, (1 << 20) + 1, 256 << 20
    assert backlog_limit(small, limit) == limit
    assert backlog_limit(large, limit) == 16 * large
    assert backlog_limit(100 << 20, limit) == limit


def test_slots() -> None:
    check_load(replace(IDLE, uploads=1), 1, LIMITS)
    assert _refused(lambda: check_load(replace(IDLE, uploads=2), 1, LIMITS)) is problems.OVERLOADED


def test_a_pace() -> None:
    assert too_slow(1023, 1.0, 1024.0, held_up=False)
    assert not too_slow(1024, 1.0, 1024.0, held_up=False)
    assert not too_slow(0, 30.0, 1024.0, held_up=True)


def test_those_who_were_refused_together_come_back_apart() -> None:
    waits = {draw_retry_after() for _ in range(200)}
    assert waits == set(range(1, pacing.RETRY_SECONDS + 1))


class Gauge:
    """A measurement that tests set, and its clock."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0
        self.measured = Measured(unfolded=0, free=10_000)

    async def measure(self) -> Measured:
        self.asked += 1
        return self.measured

    def pressure(self, max_wait: float = 0.0) -> AdmissionController:
        return AdmissionController(replace(LIMITS, max_wait=max_wait), self.measure, lambda: self.now)


async def test_bytes_count_from_admission_until_they_are_folded() -> None:
    gauge = Gauge()
    meter = gauge.pressure()
    async with meter.admit(70, b"a"):
        assert (await meter.load()).arriving == 70
        with pytest.raises(ProblemError):
            await meter.admit(31, b"a").__aenter__()
    assert (await meter.load()).unfolded == 70  # it landed after the measurement
    with pytest.raises(ProblemError):
        await meter.admit(31, b"a").__aenter__()
    gauge.now += backpressure.REFRESH_SECONDS
    async with meter.admit(31, b"a"):
        pass


async def test_a_refused_upload_gives_its_bytes_and_slot_back() -> None:
    meter = Gauge().pressure()
    with pytest.raises(ZeroDivisionError):
        async with meter.admit(70, b"a"):
            raise ZeroDivisionError
    assert await meter.load() == IDLE


async def test_who_finds_no_room_waits_for_it_in_turn() -> None:
    gauge = Gauge()
    meter = gauge.pressure(max_wait=30.0)
    order = []

    async def upload(name: str, size: int) -> None:
        async with meter.admit(size, b"a"):
            order.append(name)
            gauge.now += backpressure.REFRESH_SECONDS  # what has landed is folded by the next look

    async with meter.admit(70, b"a"):
        waiting = [asyncio.create_task(upload(name, size)) for name, size in (("large", 100), ("small", 10))]
        await asyncio.sleep(3 * backpressure.LOOK_SECONDS)
        assert order == []  # the small one would fit, and would starve the large one
    gauge.now += backpressure.REFRESH_SECONDS
    await asyncio.gather(*waiting)
    assert order == ["large", "small"]


async def test_nobody_waits_for_ever() -> None:
    meter = Gauge().pressure(max_wait=0.1)
    async with meter.admit(70, b"a"):
        refusals = await asyncio.gather(*(meter.admit(90, b"a").__aenter__() for _ in range(3)), return_exceptions=True)
    assert [getattr(refusal, "problem", None) for refusal in refusals] == [problems.OVERLOADED] * 3


async def test_one_measurement_serves_many_uploads() -> None:
    gauge = Gauge()
    meter = gauge.pressure()
    await asyncio.gather(*(meter.load() for _ in range(50)))
    assert gauge.asked == 1
    gauge.now += backpressure.REFRESH_SECONDS
    await meter.load()
    assert gauge.asked == 2


async def test_one_party_leaves_slots_and_bytes_to_others() -> None:
    limits = replace(LIMITS, ingest_bytes=1000, max_uploads=10)
    meter = AdmissionController(limits, Gauge().measure)
    async with AsyncExitStack() as stack:
        for _ in range(limits.max_uploads_of_party):
            await stack.enter_async_context(meter.admit(1, b"a"))
        with pytest.raises(ProblemError, match="this party has too many uploads"):
            await meter.admit(1, b"a").__aenter__()
        await stack.enter_async_context(meter.admit(1, b"b"))
    async with meter.admit(1, b"a"):
        pass


def _limit(world: World, **changes: int) -> None:
    limits = Limits(64 << 20, 0, 256, 4, 0.0)
    world.server.admission = AdmissionController(replace(limits, **changes), world.server.admission._measure)


async def _stalled(world: World, who: Person, upload: Upload) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An upload that has a slot and sends no more."""
    path = paths.update_path(world.task.id, upload.id.hex())
    headers = prove_request(
        who.key, who.credential, audience="aggregator", method="PUT", path=path, now=world.clock(), jti=upload.id.hex()
    )
    before = (await world.server.admission.load()).uploads
    reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
    lines = [f"PUT {path} HTTP/1.1", "Host: test", f"Content-Length: {len(upload.frame)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + upload.frame[:1000])
    async with asyncio.timeout(20):
        while (await world.server.admission.load()).uploads == before:
            await asyncio.sleep(0.01)
    return reader, writer


async def test_an_upload_waits_for_the_folding_of_those_before(world: World) -> None:
    ada, bob = world.person("ada", "client"), world.person("bob", "client")
    _limit(world, ingest_bytes=len(world.upload(ada).frame) + 1000)
    assert (await world.put(ada, world.upload(ada))).status == 201
    upload = world.upload(bob)
    answer = await world.put(bob, upload)
    assert 1 <= int(answer.headers["Retry-After"]) <= pacing.RETRY_SECONDS
    assert await world.problem(answer) == problems.OVERLOADED
    assert (await world.round(1)).updates == 1
    world.clock.now += 30.0  # a batch is gathered no longer than that
    await world.work()
    await asyncio.sleep(backpressure.REFRESH_SECONDS)
    assert (await world.put(bob, upload)).status == 201


async def test_without_back_pressure_everything_comes_in_at_once(world: World) -> None:
    ada, bob = world.person("ada", "client"), world.person("bob", "client")
    _limit(world, ingest_bytes=1 << 40)
    for client in (ada, bob):
        assert (await world.put(client, world.upload(client))).status == 201
    assert (await world.server.admission._measure()).unfolded == 2 * world.task.section("sum").size


async def test_uploads_at_once_are_counted_before_they_are_believed(world: World) -> None:
    ada, bob, eve = (world.person(name, "client") for name in ("ada", "bob", "eve"))
    _limit(world, max_uploads=1)
    _, writer = await _stalled(world, ada, world.upload(ada))
    assert await world.problem(await world.put(bob, world.upload(bob))) == problems.OVERLOADED
    assert (await world.call(None, "GET", paths.TASKS)).status == 200
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(20):
        while (await world.server.admission.load()).uploads:
            await asyncio.sleep(0.01)
    assert (await world.put(eve, world.upload(eve))).status == 201


async def _asked(world: World, who: Person, upload: Upload) -> bytes:
    """The first line of the answer to an upload that waits for "100 Continue"."""
    path = paths.update_path(world.task.id, upload.id.hex())
    headers = prove_request(
        who.key, who.credential, audience="aggregator", method="PUT", path=path, now=world.clock(), jti=upload.id.hex()
    )
    reader, writer = await asyncio.open_connection(world.http.host, world.http.port)
    lines = [f"PUT {path} HTTP/1.1", "Host: test", f"Content-Length: {len(upload.frame)}", "Expect: 100-continue"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(20):
        line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_what_is_refused_need_not_be_sent(world: World) -> None:
    ada, eve = world.person("ada", "client"), world.person("eve", "client")
    assert await _asked(world, ada, world.upload(ada)) == b"HTTP/1.1 100 Continue\r\n"
    _limit(world, max_uploads=1, min_free_bytes=1 << 60)
    assert (await _asked(world, ada, world.upload(ada))).startswith(b"HTTP/1.1 429 ")
    _limit(world)
    stolen = replace(world.upload(eve), id=bytes(16))
    eve_as_ada = replace(eve, credential=ada.credential)
    assert (await _asked(world, eve_as_ada, stolen)).startswith(b"HTTP/1.1 401 ")


async def test_a_nearly_full_disk_refuses_uploads_and_readiness(world: World) -> None:
    ada = world.person("ada", "client")
    _limit(world, min_free_bytes=1 << 60)
    answer = await world.put(ada, world.upload(ada))
    assert await world.problem(answer) == problems.OVERLOADED
    assert await world.problem(await world.call(None, "GET", "/readyz")) == problems.OVERLOADED
    _limit(world)
    assert (await world.call(None, "GET", "/readyz")).status == 200
    assert (await world.put(ada, world.upload(ada))).status == 201


async def test_a_slow_loris_loses_its_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pacing.minimum_rate
    monkeypatch.setattr(app, "minimum_rate", lambda request, rate: original(request, rate, 0.2))
    ada, bob = world.person("ada", "client"), world.person("bob", "client")
    _limit(world, max_uploads=1)
    upload = world.upload(ada)
    reader, writer = await _stalled(world, ada, upload)
    async with asyncio.timeout(20):
        answer = await reader.readuntil(problems.REQUEST_TIMEOUT.urn.encode())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert list((world.server.settings.data_dir / "blobs" / "partial").iterdir()) == []
    assert (await world.put(bob, world.upload(bob))).status == 201
    assert (await world.put(ada, upload)).status == 201
    writer.close()
    await writer.wait_closed()


async def test_without_a_pace_a_slow_loris_keeps_its_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pacing.minimum_rate
    monkeypatch.setattr(app, "minimum_rate", lambda request, rate: original(request, rate, 0.05))
    world.server.settings = world.server.settings.model_copy(update={"min_rate": 0.0})
    ada = world.person("ada", "client")
    _, writer = await _stalled(world, ada, world.upload(ada))
    await asyncio.sleep(0.5)
    assert (await world.server.admission.load()).uploads == 1
    writer.close()
    await writer.wait_closed()


async def test_a_steady_upload_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pacing.minimum_rate
    monkeypatch.setattr(app, "minimum_rate", lambda request, rate: original(request, rate, 1.0))
    ada = world.person("ada", "client")
    upload = world.upload(ada)

    async def body():  # type: ignore[no-untyped-def]
        step = len(upload.frame) // 8 + 1
        for at in range(0, len(upload.frame), step):
            yield upload.frame[at : at + step]
            await asyncio.sleep(0.2)

    path = paths.update_path(world.task.id, upload.id.hex())
    answer = await world.call(ada, "PUT", path, data=body())
    assert answer.status == 201, await answer.text()
