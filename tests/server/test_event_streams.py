"""Event streams: few of a party, so many in all, and one look at the database for all who listen to a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from he_protocol import paths, problems
from he_protocol.errors import ProblemError
from he_server.rules.records import RoundRecord
from he_server.services import streams as streams_module
from he_server.services.notifier import Notifier
from he_server.services.streams import STILL_HERE, Streams, news, texts

from .world import World


class Looks:
    """Counts how often somebody looks."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: ProblemError | None = None

    async def __call__(self, _task: str) -> Sequence[RoundRecord]:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return ()


def test_one_party_has_few_streams_and_all_have_so_many() -> None:
    async def work() -> None:
        streams = Streams(3, 2, Notifier(), Looks())
        with ExitStack() as stack:
            for party in (b"a", b"a", b"b"):
                stack.enter_context(streams.listening("task", party))
            for party in (b"a", b"c"):
                with pytest.raises(ProblemError) as caught:
                    stack.enter_context(streams.listening("task", party))
                assert caught.value.problem == problems.TOO_MANY_STREAMS
        with streams.listening("task", b"a"):
            pass
        assert (streams._watched, streams._parties) == ({}, {})

    asyncio.run(work())


async def test_a_task_is_looked_at_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:

    notifier, looks = Notifier(), Looks()
    streams = Streams(100, 100, notifier, looks, pause=0.001)
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(streams.listening("task", b"a"))
        await asyncio.sleep(0.05)
        assert looks.count == 1
        notifier.notify("task")
        notifier.notify("another")
        await asyncio.sleep(0.05)
        assert looks.count == 2


async def test_a_quiet_stream_finds_out_whether_its_reader_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "HEARTBEAT_SECONDS", 0.01)
    streams = Streams(1, 1, Notifier(), Looks())
    with streams.listening("task", b"a") as watch:
        assert await anext(aiter(texts(watch))) == STILL_HERE  # type: ignore[arg-type]
        streams.end()
        assert [text async for text in texts(watch)] == []  # type: ignore[arg-type]


async def test_a_database_that_fails_ends_the_streams() -> None:
    looks = Looks()
    looks.failure = ProblemError(problems.DATABASE_UNAVAILABLE, "try again")
    streams = Streams(1, 1, Notifier(), looks)
    with streams.listening("task", b"a") as watch, pytest.raises(ProblemError):
        async for _ in texts(watch):  # type: ignore[arg-type]
            pass


async def test_who_comes_after_a_failure_hears_again_while_others_still_leave() -> None:
    looks, notifier = Looks(), Notifier()
    looks.failure = ProblemError(problems.DATABASE_UNAVAILABLE, "try again")
    streams = Streams(2, 2, notifier, looks, pause=0.0)
    with streams.listening("task", b"a") as before:
        await _until(lambda: isinstance(before.known, ProblemError))
        looks.failure = None
        with streams.listening("task", b"b") as after:
            assert after is before
            await _until(lambda: after.known == ())


async def test_a_failure_ends_the_waiting_for_news_before_its_time() -> None:
    looks, notifier = Looks(), Notifier()
    streams = Streams(1, 1, notifier, looks, pause=0.0)

    async def read() -> int:
        return 7

    with streams.listening("task", b"a") as watch:
        waiting = asyncio.create_task(news(watch, lambda _: 7, read, lambda found: found == 7, 60.0))
        await _until(lambda: looks.count == 1)
        looks.failure = ProblemError(problems.DATABASE_UNAVAILABLE, "try again")
        notifier.notify("task")
        async with asyncio.timeout(20):
            assert await waiting == 7


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_the_ninth_stream_of_a_client_is_refused(world: World) -> None:
    ada, bob = world.person("ada", "client"), world.person("bob", "client")
    path = paths.events_path(world.task.id)
    most = world.server.settings.max_streams_per_party
    open_ = [await world.call(ada, "GET", path) for _ in range(most)]
    assert [answer.status for answer in open_] == [200] * most
    assert await world.problem(await world.call(ada, "GET", path)) == problems.TOO_MANY_STREAMS
    open_.append(await world.call(bob, "GET", path))
    assert (await open_[-1].content.readline()).startswith(b"event: round")
    for answer in open_:
        answer.close()
