"""Enrolled clients that lie to the server: with the check off the lie is in the round, with it on it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from he_holder.rules import headers_signed
from he_protocol import paths, problems
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS
from he_protocol.identity.jws import read_unverified
from he_protocol.identity.requests import prove_request
from he_protocol.messages import Credential
from he_testing.problems import expect_problem
from tests.server.conftest import both
from tests.server.world import Person, World, constant
from tests.support.openings import ask
from tests.support.parties import NOW
from tests.support.parties import World as Parties

switch = pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])


@pytest.fixture
def mallory(world: World) -> Person:
    return world.person("mallory", "client")


@switch
async def test_a_residue_above_its_modulus_wraps_the_sum(
    world: World, mallory: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defence:
        monkeypatch.setattr("he_server.services.receive.check", lambda *_: None)
    upload = world.upload_of(mallory, b"\xff" * 7 + constant(world.task, 1)[7:])
    answer = await world.put(mallory, upload)
    if defence:
        assert await world.problem(answer) == problems.RESIDUE_RANGE
    else:
        assert answer.status == 201


@switch
async def test_an_endless_body_of_undeclared_length(
    world: World, mallory: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: the server reads as long as the client sends. On: no more than a block above the update's size."""
    if not defence:
        monkeypatch.setattr("he_server.services.frames.Frame.blocks", _greedy)
    upload = world.upload(mallory)
    sent, wanted = 0, len(upload.frame) + (16 << 20)

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield upload.frame
        while sent < wanted:
            sent += 1 << 16
            yield bytes(1 << 16)
            await asyncio.sleep(0)

    path = paths.update_path(world.task.id, upload.id.hex())
    answer = await world.call(mallory, "PUT", path, data=body())
    if defence:
        assert await world.problem(answer) == problems.TRAILING_BYTES
        assert sent < wanted
        assert (await world.round(1)).updates == 0
    else:
        assert sent >= wanted


async def _greedy(frame: object, _size: int) -> AsyncIterator[bytes]:
    async for block in frame._content.iter_any():  # type: ignore[attr-defined]
        yield block


@both
async def test_an_id_that_another_client_has_taken(world: World, mallory: Person) -> None:
    """The second is refused, and the first is in the round as if nothing had happened."""
    ada = world.person("ada", "client")
    first = world.upload(ada)
    assert (await world.put(ada, first)).status == 201
    copied = world.upload(mallory, 5, update_id=first.id)
    assert await world.problem(await world.put(mallory, copied)) == problems.UPDATE_ID_REUSED
    assert (await world.put(ada, first)).status == 200
    assert (await world.put(mallory, world.upload(mallory))).status == 201
    await world.fill(1)
    await world.work()
    _, manifest = await world.manifest(1)
    assert {entry.update_id: entry.client for entry in manifest.updates}[first.id] == "ada"
    await world.open(1)
    assert (await world.round(1)).state == "published"


@both
async def test_of_two_clients_with_one_id_at_once_exactly_one_is_in_the_round(world: World, mallory: Person) -> None:
    ada = world.person("ada", "client")
    first = world.upload(ada)
    second = world.upload(mallory, 5, update_id=first.id)
    answers = await asyncio.gather(world.put(ada, first), world.put(mallory, second))
    assert sorted(answer.status for answer in answers) == [201, 409]
    assert (await world.round(1)).updates == 1


@switch
async def test_a_request_that_was_seen_on_the_wire_is_sent_again(
    world: World, mallory: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defence:
        monkeypatch.setattr(world.server.replays, "use", lambda *_: None)
    path = paths.task_path(world.task.id) + "/model"
    headers = prove_request(
        mallory.key, mallory.credential, audience="aggregator", method="GET", path=path, now=world.clock(), jti="once"
    )
    assert (await world.http.get(path, headers=headers)).status == 200
    again = await world.http.get(path, headers=headers)
    if defence:
        assert await world.problem(again) == problems.REPLAYED_REQUEST
    else:
        assert again.status == 200


@switch
async def test_an_update_from_the_future(
    world: World, mallory: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: it is in the round, and key holders refuse the round."""
    if not defence:
        monkeypatch.setattr("he_server.rules.updates.CLOCK_SKEW_SECONDS", 1 << 40)
    answer = await world.put(mallory, world.upload(mallory, created=int(world.clock()) + CLOCK_SKEW_SECONDS + 1))
    if defence:
        assert await world.problem(answer) == problems.CLOCK_SKEW
    else:
        assert answer.status == 201


@switch
async def test_a_credential_that_runs_out_before_the_round_is_opened(
    world: World, mallory: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off: it is in the round, and key holders refuse the whole manifest (below)."""
    if not defence:
        monkeypatch.setattr("he_server.services.submit.check_lasting", lambda *_: None)
    lasts = int(world.clock()) + world.task.config.rounds.collect_seconds + world.task.config.rounds.opening_seconds
    claims = read_unverified(mallory.credential, Credential)
    mallory.credential = world.authority.sign(replace(claims, exp=lasts))
    answer = await world.put(mallory, world.upload(mallory))
    if defence:
        assert await world.problem(answer) == problems.EXPIRED_CREDENTIAL
        mallory.credential = world.authority.sign(replace(claims, exp=lasts + 1))
        assert (await world.put(mallory, world.upload(mallory))).status == 201
    else:
        assert answer.status == 201


def test_one_expired_credential_refuses_the_whole_manifest() -> None:
    made = Parties()
    made.clients["mallory"] = made.authority.party("mallory", "client", now=NOW - 86400, days=1)
    request = ask(made, [made.update(name) for name in ("alice", "bob", "carol", "mallory")])
    with expect_problem(problems.EXPIRED_CREDENTIAL):
        headers_signed(request)
