"""The agent's loop over real HTTP: it serves, it survives, and it does not nag."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from he_holder import agent
from he_holder.agent import LEAST_SECONDS, REFUSED_SECONDS, Agent, serve
from he_holder.epochs import joined_tasks, state_of
from he_holder.holder import KeyHolder
from he_holder.ledger import Ledger
from he_party.http_transport import RetryPolicy
from he_protocol import documents, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey
from he_protocol.problems import BAD_SIGNATURE, DATABASE_UNAVAILABLE, INTERNAL, UNREACHABLE, WRONG_STATE
from he_testing.clocks import FakeClock
from he_testing.fake_server import FakeServer, key_bodies, problem
from he_testing.problems import expect_problem
from tests.support.holders import QUICK, give_key, holder_of
from tests.support.openings import ask
from tests.support.parties import NOW, World, random_integers


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def bodies(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("contexts")
    return [world.encrypt(random_integers(world.task.length, seed), folder)["c1"] for seed in range(3)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def policy(**_: float) -> RetryPolicy:
        return QUICK

    monkeypatch.setattr(agent, "RetryPolicy", policy)


@pytest.fixture
async def server(world: World) -> AsyncIterator[FakeServer]:
    async with FakeServer(world.task, committee=world.committee) as running:
        yield running


@pytest.fixture
async def holder(world: World, tmp_path: Path, clock: FakeClock) -> AsyncIterator[KeyHolder]:
    async with holder_of(world, 0, tmp_path, clock=clock) as made:
        give_key(world, 0, made)
        yield made


@asynccontextmanager
async def serving(holder: KeyHolder, world: World, *urls: str) -> AsyncIterator[asyncio.Task[None]]:
    """The agents at work until the block ends; they must not have died before."""
    for url in urls:
        await holder.join(world.task, url)
    agents = [Agent(holder, world.task, url, poll_seconds=0.01) for url in urls]
    work = asyncio.create_task(serve(holder, agents))
    try:
        yield work
        assert not work.done(), work
    finally:
        work.cancel()
        await asyncio.wait([work])


def offer(world: World, server: FakeServer, bodies: list[bytes], number: int = 1, **changes: Any) -> None:
    """A closed round of three fresh updates."""
    names = [f"{who}-{number}" for who in "abc"]
    parts = [{"c0": b"", "c1": body} for body in bodies]
    updates = [world.update(name, part) for name, part in zip(names, parts, strict=True)]
    sizes = [(p.name, p.size) for p in world.task.body]
    assert sizes[1][1] == len(bodies[0])
    request = ask(world, updates, number=number, **changes)
    server.offer(request, key_bodies(list(zip(updates, bodies, strict=True))))


def openings(world: World) -> tuple[str, str]:
    return "GET", paths.openings_path(world.task.id)


def opening(world: World, number: int) -> tuple[str, str]:
    return "GET", paths.opening_path(world.task.id, number)


async def test_every_round_that_waits_is_opened_once(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes]
) -> None:
    async with serving(holder, world, server.url):
        for number in (1, 2):
            offer(world, server, bodies, number)
        await server.until(lambda: len(server.shares) == 2)
        offer(world, server, bodies, 3)
        await server.until(lambda: (3, "holder-0") in server.shares)
    assert server.put_shares == [(1, "holder-0"), (2, "holder-0"), (3, "holder-0")]


@pytest.mark.parametrize("always_new", [False, True])
async def test_a_server_that_keeps_no_answer_back_is_not_asked_without_pause(
    world: World, server: FakeServer, holder: KeyHolder, monkeypatch: pytest.MonkeyPatch, always_new: bool
) -> None:
    asked = 0

    async def look(self: Agent, wait: int) -> None:
        nonlocal asked
        asked += 1
        self._pending = documents.PendingOpenings((documents.Waiting(asked, "vote"),) if always_new else ())
        self._refused = dict.fromkeys(self._pending.rounds, inf)

    monkeypatch.setattr(Agent, "_look", look)
    async with serving(holder, world, server.url):
        await asyncio.sleep(0.5)
    assert 5 < asked <= 0.5 / (LEAST_SECONDS if always_new else 0.01) + 1


async def test_a_server_that_is_down_is_asked_until_it_is_there(
    world: World, holder: KeyHolder, bodies: list[bytes]
) -> None:
    async with FakeServer(world.task, committee=world.committee) as first:
        port = int(first.url.rsplit(":", 1)[1])
    async with serving(holder, world, first.url) as work:
        await asyncio.sleep(0.3)
        assert not work.done()
        async with FakeServer(world.task, committee=world.committee, port=port) as back:
            offer(world, back, bodies)
            await back.until(lambda: bool(back.shares))


@pytest.mark.parametrize("kind", [UNREACHABLE, INTERNAL, BAD_SIGNATURE])
async def test_a_server_that_only_fails_is_asked_again(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes], kind: object
) -> None:
    server.replaced[openings(world)] = problem(kind)  # type: ignore[arg-type]
    offer(world, server, bodies)
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*openings(world)) >= 3)
        assert server.shares == {}
        del server.replaced[openings(world)]
        await server.until(lambda: bool(server.shares))


@pytest.mark.parametrize("said", [b"", b"[]", b'{"rounds": "all"}', b'{"rounds": [1.5]}', b"\xff"])
async def test_nonsense_for_an_answer_is_survived(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes], said: bytes
) -> None:
    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(body=said)

    server.replaced[openings(world)] = nonsense
    offer(world, server, bodies)
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*openings(world)) >= 3)
        del server.replaced[openings(world)]
        await server.until(lambda: bool(server.shares))


@pytest.mark.parametrize("number", [10**30, 2**63, 2**53 + 1, 0, -1])
async def test_an_impossible_round_number_stops_nobody(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes], number: int
) -> None:
    """One server's lie must not end the loop that serves all the others."""
    offer(world, server, bodies)
    token, _ = world.manifest([])

    async def pending(_: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode({"rounds": [str(number)]}).replace(b'"%d"' % number, b"%d" % number)
        )

    async def empty(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(documents.Opening("vote", token)))

    server.replaced[openings(world)] = pending
    server.replaced[opening(world, number)] = empty
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*openings(world)) >= 3)
        del server.replaced[openings(world)]
        await server.until(lambda: bool(server.shares))


async def test_refusals_whose_time_is_over_are_forgotten(
    world: World, server: FakeServer, holder: KeyHolder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that always names new rounds must not fill the holder's memory."""

    async def look(self: Agent, wait: int) -> None:
        self._pending = documents.PendingOpenings(())

    monkeypatch.setattr(Agent, "_look", look)
    agent = Agent(holder, world.task, server.url, poll_seconds=1.0)
    agent._refused = {documents.Waiting(n, "vote"): clock() + n for n in (1, 2)}
    clock.now += 1
    await agent.step()
    assert list(agent._refused) == [documents.Waiting(2, "vote")]


async def test_a_refused_round_is_left_alone_for_a_while(
    world: World, server: FakeServer, holder: KeyHolder, clock: FakeClock, bodies: list[bytes]
) -> None:
    offer(world, server, bodies, 1, signer=SigningKey.generate())
    offer(world, server, bodies, 2)
    async with serving(holder, world, server.url):
        await server.until(lambda: (2, "holder-0") in server.shares)
        asked = server.count(*openings(world))
        await server.until(lambda: server.count(*openings(world)) >= asked + 5)
        assert server.count(*opening(world, 1)) == 1
        clock.now += REFUSED_SECONDS - 1
        asked = server.count(*openings(world))
        await server.until(lambda: server.count(*openings(world)) >= asked + 5)
        assert server.count(*opening(world, 1)) == 1
        clock.now += 1
        await server.until(lambda: server.count(*opening(world, 1)) == 2)
    assert (1, "holder-0") not in server.shares


async def test_a_refused_screening_blocks_no_vote(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes]
) -> None:
    """The others were faster; what they ask for next does not wait until the refusal is forgotten."""
    key = ("PUT", paths.answer_path(world.task.id, 1, "holder-0"))
    server.replaced[key] = problem(WRONG_STATE)
    offer(world, server, bodies)
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*key) == 1)
        del server.replaced[key]
        server.stages[1] = "vote"
        await server.until(lambda: (1, "holder-0", "vote") in server.answers)


async def test_refusals_are_in_the_ledger_once(
    world: World, server: FakeServer, tmp_path: Path, clock: FakeClock, bodies: list[bytes]
) -> None:
    offer(world, server, bodies, 1, signer=SigningKey.generate())
    async with holder_of(world, 1, tmp_path, clock=clock) as one:
        give_key(world, 1, one)
        async with serving(one, world, server.url):

            def asked_again() -> bool:
                clock.now += REFUSED_SECONDS
                return server.count(*opening(world, 1)) >= 2

            await server.until(asked_again)
    async with holder_of(world, 1, tmp_path) as again:
        assert [r.problem for r in await again.ledger.refusals(world.task.hash)] == ["bad-signature"]


async def test_an_interrupted_round_is_taken_up_at_the_next_poll(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes]
) -> None:
    key = ("PUT", paths.share_path(world.task.id, 1, "holder-0"))
    server.replaced[key] = problem(INTERNAL)
    offer(world, server, bodies)
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*key) >= 2)
        del server.replaced[key]
        await server.until(lambda: bool(server.shares))


async def test_a_share_that_the_server_does_not_want_is_not_pressed_on_it(
    world: World, server: FakeServer, holder: KeyHolder, bodies: list[bytes]
) -> None:
    key = ("PUT", paths.share_path(world.task.id, 1, "holder-0"))
    server.replaced[key] = problem(WRONG_STATE)
    offer(world, server, bodies)
    async with serving(holder, world, server.url):
        await server.until(lambda: server.count(*key) == 1)
        asked = server.count(*openings(world))
        await server.until(lambda: server.count(*openings(world)) >= asked + 5)
        assert server.count(*key) == 1
        assert await holder.ledger.refusals(world.task.hash) == []  # a quorum of the others was faster: no evidence


async def test_joined_tasks_are_verified_again(world: World, holder: KeyHolder) -> None:
    await holder.join(world.task, "http://one")
    ((task, url),) = await joined_tasks(holder)
    assert (task, url) == (world.task, "http://one")
    stranger = World()
    await holder.ledger.join(stranger.task, "http://two", NOW)
    with expect_problem(BAD_SIGNATURE):
        await joined_tasks(holder)


@pytest.mark.parametrize(
    "failure", [ProblemError(DATABASE_UNAVAILABLE, "the ledger", got="disk is full"), ValueError("a bug")]
)
async def test_a_ledger_that_fails_for_a_while_ends_nothing(
    world: World,
    server: FakeServer,
    holder: KeyHolder,
    bodies: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    """A busy file, a full disk, whatever it is: rounds are served once it is over."""
    transaction, failed = Ledger._transaction, 0

    @asynccontextmanager
    async def failing(self: Ledger) -> AsyncIterator[AsyncConnection]:
        nonlocal failed
        failed += 1
        if failed < 20:
            raise failure
        async with transaction(self) as connection:
            yield connection

    await holder.join(world.task, server.url)
    monkeypatch.setattr(Ledger, "_transaction", failing)
    work = asyncio.create_task(serve(holder, [Agent(holder, world.task, server.url, poll_seconds=0.01)]))
    try:
        offer(world, server, bodies)
        await server.until(lambda: (1, "holder-0") in server.shares)
        assert failed >= 20
        assert not work.done()
    finally:
        work.cancel()
        await asyncio.wait([work])


async def test_a_task_that_was_left_is_served_no_more_until_it_is_joined_again(
    world: World, server: FakeServer, holder: KeyHolder
) -> None:
    await holder.join(world.task, server.url)
    work = asyncio.create_task(Agent(holder, world.task, server.url, poll_seconds=0.01).run())
    await server.until(lambda: bool(server.seen))
    await holder.ledger.leave(world.task, NOW)
    await asyncio.wait_for(work, 20)
    assert await state_of(holder, world.task) == "left"
    await holder.join(world.task, server.url)
    assert await state_of(holder, world.task) == "open"
    assert await holder.ledger.left() == frozenset()
