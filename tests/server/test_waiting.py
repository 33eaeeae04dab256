"""Key holders that wait for news: they hear at once what concerns them, and nothing else before their time is over."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from aiohttp import ClientResponse

from he_protocol import documents, paths, problems
from he_server.http.app import drain
from he_server.http.handlers.openings import MAX_WAIT, preferred_wait
from he_server.services import streams
from he_server.services.shared_read import SharedRead

from .world import World

NOTHING = documents.PendingOpenings(())


async def _ask(world: World, known: documents.PendingOpenings, wait: int, holder: int = 0) -> ClientResponse:
    headers = {"If-None-Match": known.etag, "Prefer": f"wait={wait}"}
    return await world.call(world.holders[holder], "GET", paths.openings_path(world.task.id), headers=headers)


async def _waiting(world: World, known: documents.PendingOpenings) -> asyncio.Task[ClientResponse]:
    """A holder that waits by now."""
    before = world.server.news.waiting._parties.total()
    asking = asyncio.create_task(_ask(world, known, 30))
    async with asyncio.timeout(20):
        while world.server.news.waiting._parties.total() == before:
            await asyncio.sleep(0.01)
    return asking


async def _told(asking: asyncio.Task[ClientResponse]) -> documents.PendingOpenings:
    async with asyncio.timeout(20):
        response = await asking
        assert response.status == 200
        pending = msgspec.json.decode(await response.read(), type=documents.PendingOpenings)
    assert response.headers["ETag"] == pending.etag
    return pending


async def test_every_stage_is_heard_at_once(world: World) -> None:
    asking = await _waiting(world, NOTHING)
    await world.fill(3)
    await world.work()
    pending = await _told(asking)
    assert pending.rounds == (documents.Waiting(1, "screen"),)
    for stage in ("vote", "release"):
        await (world.screen if stage == "vote" else world.vote)(1)
        asking = asyncio.create_task(_ask(world, NOTHING, 30))
        await world.work()
        pending = await _told(asking)
        assert pending.rounds == (documents.Waiting(1, stage),)


async def test_without_news_it_is_told_so_when_its_time_is_over(world: World) -> None:
    await world.fill(1)
    response = await _ask(world, NOTHING, 1)
    assert (response.status, response.headers["ETag"], await response.read()) == (304, NOTHING.etag, b"")
    assert world.server.news.waiting._watched == {}


async def test_what_is_news_or_wanted_now_is_told_now(world: World) -> None:
    async with asyncio.timeout(20):
        assert (await _ask(world, documents.PendingOpenings((documents.Waiting(7, "vote"),)), 30)).status == 200
        assert (await _ask(world, NOTHING, 0)).status == 304


async def test_news_that_another_process_made_is_heard_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(world.server.news, "heard", lambda _task: None)
    monkeypatch.setattr(world.server.news, "notify", lambda _task: None)
    asking = await _waiting(world, NOTHING)
    await world.fill(3)
    await world.work()
    assert (await _told(asking)).rounds == (documents.Waiting(1, "screen"),)


async def test_a_server_that_goes_away_answers_first(world: World) -> None:
    asking = await _waiting(world, NOTHING)
    async with asyncio.timeout(20):
        await drain(world.server)
        assert (await asking).status == 304


async def test_a_holder_waits_few_times_for_one_task(world: World) -> None:
    most = world.server.settings.max_streams_per_party
    asking = [await _waiting(world, NOTHING) for _ in range(most)]
    assert await world.problem(await _ask(world, NOTHING, 30)) == problems.TOO_MANY_STREAMS
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_no_client_waits_for_openings(world: World) -> None:
    ada = world.person("ada", "client")
    answer = await world.call(ada, "GET", paths.openings_path(world.task.id), headers={"Prefer": "wait=30"})
    assert answer.status == 403


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("wait=20", 20), (" wait=0 ", 0), ("wait=999999", MAX_WAIT), ("", 0), ("wait=-1", 0), ("wait=1e3", 0)],
)
def test_the_preference_is_read_strictly(header: str, seconds: int) -> None:
    assert preferred_wait(header) == seconds


async def test_who_asks_at_once_is_answered_by_one_read_and_nobody_by_an_earlier_one() -> None:
    began, go = 0, asyncio.Event()

    async def read() -> int:
        nonlocal began
        began += 1
        mine = began
        await go.wait()
        return mine

    shared = SharedRead(read)
    together = [asyncio.create_task(shared()) for _ in range(3)]
    while not began:
        await asyncio.sleep(0)
    later = [asyncio.create_task(shared()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    together[0].cancel()
    go.set()
    assert await asyncio.gather(*together[1:]) == [1, 1]
    assert await asyncio.gather(*later) == [2, 2]
