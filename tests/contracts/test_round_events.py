"""`he_party.events.RoundEvents`: in the server's process, and through a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from he_client.client import HushSumClient
from he_party.events import RoundEvents, event_data
from he_party.identity import Identity
from he_protocol.problems import TOO_LARGE, TOO_MANY_STREAMS
from he_server.http.app import drain
from he_testing.problems import expect_problem
from tests.server.world import World


@pytest.fixture(params=["server", "client"])
async def events(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[RoundEvents]:
    if request.param == "server":
        yield world.server.news
        return
    ada = world.person("ada", "client")
    identity = Identity(ada.name, ada.key, ada.credential, world.authority.public)
    url = f"http://{world.http.host}:{world.http.port}"
    async with HushSumClient(url, identity, state_dir=tmp_path / "ada", clock=world.clock) as client:
        yield client


async def test_the_newest_round_first_then_every_change(events: RoundEvents, world: World) -> None:
    told = aiter(events.changes(world.task))
    async with asyncio.timeout(20):
        first = await anext(told)
        assert (first.round, first.state, first.updates) == (1, "open", 0)
        await world.fill(3)
        found = [await anext(told) for _ in range(2)]
        assert [(status.round, status.state) for status in found] == [(1, "closed"), (2, "open")]
        await world.form(1)
        assert (await anext(told)).state == "opening"
        await world.open(1)
        published = await anext(told)
        assert (published.round, published.state, published.version) == (1, "published", 1)


async def test_it_ends_with_the_server(events: RoundEvents, world: World) -> None:
    told = aiter(events.changes(world.task))
    async with asyncio.timeout(20):
        await anext(told)
        await drain(world.server)
        assert [status async for status in told] == []


async def test_there_are_only_so_many_listeners(events: RoundEvents, world: World) -> None:
    most = world.server.settings.max_streams_per_party
    open_ = [aiter(events.changes(world.task)) for _ in range(most)]
    for told in open_:
        await anext(told)
    with expect_problem(TOO_MANY_STREAMS):
        await anext(aiter(events.changes(world.task)))


async def _blocks(text: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_are_cut_out_of_any_blocks(size: int) -> None:
    text = b": still here\n\nevent: round\nid: 1\ndata: {}\n\ndata: 2\n\ndata: unfinished"
    assert [data async for data in event_data(_blocks(text, size), 40)] == [b"{}", b"2"]


async def test_an_event_that_never_ends_is_refused() -> None:
    with expect_problem(TOO_LARGE):
        _ = [data async for data in event_data(_blocks(b"data: " + bytes(100), 10), 50)]
