"""Many at once: the database's promises hold, whatever the order."""

from __future__ import annotations

import asyncio

import pytest

from he_protocol import problems
from he_protocol.errors import ProblemError
from he_protocol.messages import RequestProof
from he_server.services.replay import ReplayCache

from .conftest import both
from .world import World

pytestmark = pytest.mark.usefixtures("both_sizes")


@both
async def test_rounds_fill_to_the_brim_and_not_over(world: World) -> None:
    clients = [world.person(f"client-{i}", "client") for i in range(7)]
    answers = await asyncio.gather(*(world.put(client, world.upload(client)) for client in clients))
    assert [answer.status for answer in answers] == [201] * 7
    assert [(await world.round(n)).updates for n in (1, 2, 3)] == [3, 3, 1]


@both
async def test_the_same_upload_many_times_at_once(world: World) -> None:
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    answers = await asyncio.gather(*(world.put(ada, upload) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 200, 201]
    assert len({await answer.read() for answer in answers}) == 1
    assert len(list((world.server.settings.data_dir / "blobs" / "updates").iterdir())) == 1
    await world.fill(2)
    await world.work()
    await world.open(1)
    assert (await world.round(1)).state == "published"


@both
async def test_one_id_with_two_contents_at_once(world: World) -> None:
    ada = world.person("ada", "client")
    first = world.upload(ada, 100)
    second = world.upload(ada, 200, update_id=first.id)
    answers = await asyncio.gather(world.put(ada, first), world.put(ada, second))
    assert sorted(answer.status for answer in answers) == [201, 409]


@both
async def test_one_share_many_times_at_once(world: World) -> None:
    await world.fill(3)
    await world.certify(1)
    frame = await world.share(0, 1)
    answers = await asyncio.gather(*(world.put_share(0, 1, frame) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 201]
    assert len(list((world.server.settings.data_dir / "blobs" / "shares").iterdir())) == 1


def _proof(jti: str, exp: int = 100) -> RequestProof:
    return RequestProof(aud="a", htm="GET", htu="/", iat=0, exp=exp, jti=jti, ath="")


def test_the_replay_cache_is_bounded_and_forgets_what_expired() -> None:
    cache = ReplayCache(capacity=4, share=2)
    cache.use(b"a", _proof("1"), 0)
    cache.use(b"b", _proof("1"), 0)  # another key
    with pytest.raises(ProblemError) as caught:
        cache.use(b"a", _proof("1"), 99)
    assert caught.value.problem == problems.REPLAYED_REQUEST
    cache.use(b"a", _proof("2"), 99)
    for party in (b"a", b"c"):
        if party == b"c":
            cache.use(b"c", _proof("1"), 99)
        with pytest.raises(ProblemError) as caught:
            cache.use(party, _proof("3"), 99)
        assert caught.value.problem == problems.OVERLOADED
    cache.use(b"a", _proof("3", 300), 200)
    assert len(cache._seen) == 1
