"""A stolen signing key: good until the authority's revocation list is known, and for nothing from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from he_client import HushSumClient
from he_holder.holder import KeyHolder
from he_holder.ledger import Ledger
from he_party.identity import Identity
from he_protocol import documents, paths, problems, tus
from he_protocol.config import TensorSpec
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.identity.revocation import Revocations
from he_protocol.messages import Credential, RevocationList, Screening, Share
from he_server.services.revocations import REVOCATIONS_SECONDS
from he_testing.fake_server import FakeServer
from he_testing.problems import expect_problem
from tests.server.conftest import both
from tests.server.world import Person, World
from tests.support import parties
from tests.support.holders import QUICK, holder_of, line_to, open_round
from tests.support.openings import ask, send_kahe
from tests.support.parties import NOW, random_integers
from tests.support.revocations import DAY, revoked

# At the server


async def bring(world: World, known: Revocations) -> None:
    """Anybody may."""
    answer = await world.call(None, "PUT", paths.REVOCATIONS, data=known.token.encode())
    assert answer.status == 201, await answer.text()


async def steal(world: World, *stolen: Person, number: int = 1) -> None:
    """The authority hears of it."""
    keys = (one.credential for one in stolen)
    await bring(world, revoked(world.authority, *keys, number=number, now=world.clock()))


@both
async def test_a_stolen_key_uploads_until_the_list_is_there(world: World) -> None:
    ada = world.person("ada", "client")
    assert (await world.put(ada, world.upload(ada))).status == 201
    await world.fill(2)
    await steal(world, ada)
    thief = world.upload(ada, created=0)  # whatever date it signs
    assert await world.problem(await world.put(ada, thief)) == problems.REVOKED_KEY
    path = paths.update_path(world.task.id, thief.id.hex())
    assert await world.problem(await world.call(ada, "GET", path)) == problems.REVOKED_KEY
    again = world.person("ada", "client")  # she enrolls again, under the same name
    await world.work()
    await world.open(1)
    assert (await world.put(again, world.upload(again, base_version=1))).status == 201


async def test_an_older_credential_of_the_stolen_key_is_no_way_round(world: World) -> None:
    """Lists name keys: revoking one credential would leave the others that the key ever had."""
    ada = world.person("ada", "client")
    renewed = Person("ada", "client", ada.key, world.person("ada", "client").credential)
    claims = read_unverified(ada.credential, Credential)
    renewed.credential = world.authority.sign(replace(claims, iat=claims.iat + 1))
    await steal(world, renewed)
    assert await world.problem(await world.put(ada, world.upload(ada))) == problems.REVOKED_KEY


async def test_an_upload_that_the_thief_began_before_is_not_accepted_after(world: World) -> None:
    """Its URL is a capability that nobody asks for a credential."""
    ada = world.person("ada", "client")
    upload = world.upload(ada)
    metadata = tus.metadata(upload.id)
    headers = {"Tus-Resumable": tus.VERSION, "Upload-Length": str(len(upload.frame)), "Upload-Metadata": metadata}
    begun = await world.call(ada, "POST", paths.uploads_path(world.task.id), headers=headers)
    assert begun.status == 201, await begun.text()
    await steal(world, ada)
    headers = {"Tus-Resumable": tus.VERSION, "Upload-Offset": "0", "Content-Type": tus.CONTENT_TYPE}
    sent = await world.call(None, "PATCH", begun.headers["Location"], data=upload.frame, headers=headers)
    assert await world.problem(sent) == problems.REVOKED_KEY
    assert (await world.round(1)).updates == 0


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_what_a_thief_has_sent_before_is_left_out(world: World, defence: bool) -> None:
    ada = world.person("ada", "client")
    assert (await world.put(ada, world.upload(ada))).status == 201
    await world.fill(2)
    if defence:
        await steal(world, ada)
    await world.work()
    await world.open(1)
    status = await world.round(1)
    assert status.state == "published"
    assert [one.failure.type for one in status.excluded] == ([problems.REVOKED_KEY.urn] if defence else [])


async def test_a_bucket_without_the_thief_goes_on(empty_world: World) -> None:
    """The thief's is no bucket any more."""
    world = empty_world
    await world.add_task(buckets=2, min_clients=1, max_clients=2)
    ada = world.person("ada", "client")
    assert (await world.put(ada, world.upload(ada))).status == 201
    await world.fill(1)
    await steal(world, ada)
    await world.work()
    _, manifest = await world.manifest(1)
    assert [(entry.client, entry.bucket) for entry in manifest.updates] == [("client-0", 0)]
    await world.open(1)
    assert (await world.round(1)).state == "published"


@pytest.mark.parametrize("role", ["client", "holder"])
async def test_a_revoked_holder_is_not_heard(world: World, role: str) -> None:
    await world.fill(3)
    await world.certify(1)
    frame = await world.share(0, 1)
    await steal(world, world.holders[0] if role == "holder" else world.person("ada", "client"))
    answer = await world.put_share(0, 1, frame)
    if role == "holder":
        assert await world.problem(answer) == problems.REVOKED_KEY
    else:
        assert answer.status == 201


@both
async def test_lists_never_go_back(world: World) -> None:
    ada = world.person("ada", "client")
    newest = revoked(world.authority, ada.credential, number=5, now=world.clock())
    await bring(world, newest)
    again = await world.call(None, "PUT", paths.REVOCATIONS, data=newest.token.encode())
    assert again.status == 200
    for number in (4, 5):  # 5 for the second time, with nobody on it
        older = revoked(world.authority, number=number, now=world.clock())
        answer = await world.call(None, "PUT", paths.REVOCATIONS, data=older.token.encode())
        assert await world.problem(answer) == problems.OLD_REVOCATIONS
    assert (await world.get(None, paths.REVOCATIONS, documents.Revoked)).revocations == newest.token
    entries = await world.server.store.audit.entries()
    assert [(entry.event, entry.detail) for entry in entries][1:] == [("keys-revoked", '{"number":5,"keys":1}')]


async def test_only_the_authority_revokes(world: World) -> None:
    ada = world.person("ada", "client")
    for stranger in (SigningKey.generate(), world.server_key.signing):
        token = stranger.sign(RevocationList(9, 0, 2**50, ()))
        answer = await world.call(None, "PUT", paths.REVOCATIONS, data=token.encode())
        assert await world.problem(answer) == problems.BAD_SIGNATURE
    for keys in ((b"\2" * 32, b"\1" * 32), (b"\1" * 32, b"\1" * 32)):
        token = world.authority.sign(RevocationList(9, 0, 2**50, keys))
        answer = await world.call(None, "PUT", paths.REVOCATIONS, data=token.encode())
        assert await world.problem(answer) == problems.MALFORMED
    answer = await world.call(None, "PUT", paths.REVOCATIONS, data=b"\xff")
    assert await world.problem(answer) == problems.MALFORMED
    assert (await world.put(ada, world.upload(ada))).status == 201


async def test_what_another_process_learnt_is_soon_known(world: World) -> None:
    ada = world.person("ada", "client")
    assert (await world.put(ada, world.upload(ada))).status == 201
    known = revoked(world.authority, ada.credential, now=world.clock())
    await world.server.store.revocations.learn(known, world.clock())
    world.clock.now += REVOCATIONS_SECONDS
    assert await world.problem(await world.put(ada, world.upload(ada))) == problems.REVOKED_KEY


# At a key holder


@dataclass
class Scene:
    """Holder 0 and a server with a closed round of two buckets, three clients in each."""

    world: parties.World
    server: FakeServer
    holder: KeyHolder
    time: list[float]

    async def open(self) -> Share:
        async with line_to(self.server.url, self.holder) as line:
            await open_round(self.holder, self.world.task, 1, line)
        return read_unverified(self.server.shares[1, "holder-0"][0], Share)

    def offer(self, *stolen: Identity, number: int = 1) -> None:
        """The server has this list."""
        keys = (one.credential for one in stolen)
        self.server.revocations = revoked(self.world.authority.key, *keys, number=number, now=NOW).token


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    plan = {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0, "buckets": 2}
    world = parties.World(3, plan, (TensorSpec("w", (40,)),))
    sent = [send_kahe(world, f"client-{i}", random_integers(40, i, 100)) for i in range(6)]
    request = ask(world, [one.update for one in sent], buckets={f"client-{i}": i % 2 for i in range(6)})
    time = [NOW]
    async with (
        FakeServer(world.task, committee=world.committee) as server,
        holder_of(world, 0, tmp_path, clock=lambda: time[0]) as holder,
    ):
        server.offer(request, {one.header.update_id.hex(): one.body["shares"] for one in sent})
        await holder.join(world.task, server.url)
        yield Scene(world, server, holder, time)


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_a_holder_keeps_the_thiefs_bucket_closed_and_opens_the_other(scene: Scene, defence: bool) -> None:
    if defence:
        scene.offer(scene.world.client("client-3"))
    share = await scene.open()
    assert {vector.bucket for vector in share.vectors} == ({0} if defence else {0, 1})
    assert [(one.bucket, one.problem) for one in share.failed] == ([(1, "revoked-key")] if defence else [])


async def test_a_holder_opens_nothing_where_every_bucket_has_a_thief(scene: Scene) -> None:
    """Though all others have voted: the list may have come between votes."""
    scene.offer(scene.world.client("client-0"), scene.world.client("client-1"))
    share = await scene.open()
    assert share.vectors == ()
    assert [(one.bucket, one.problem) for one in share.failed] == [(0, "revoked-key"), (1, "revoked-key")]
    screening = read_unverified(scene.server.answers[1, "holder-0", "screening"], Screening)
    assert [one.problem for one in screening.excluded] == ["revoked-key"] * 2


async def test_a_holder_does_not_open_for_a_stolen_server_key(scene: Scene) -> None:
    """Whoever has the key serves no list by which it would be caught: the holder has it from before."""
    scene.offer(scene.world.server)
    with expect_problem(problems.REVOKED_KEY):
        await scene.open()
    scene.server.revocations = ""
    with expect_problem(problems.REVOKED_KEY):
        await scene.open()


async def test_an_older_list_is_not_taken_for_the_newest(scene: Scene) -> None:
    scene.offer(scene.world.client("client-3"), number=2)
    assert len((await scene.open()).failed) == 1
    scene.offer(number=1)
    assert len((await scene.open()).failed) == 1
    scene.offer(number=3)  # the authority has taken it back
    assert (await scene.open()).failed == ()


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_a_server_that_holds_back_the_next_list_gains_the_rest_of_this_ones_time(
    scene: Scene, defence: bool
) -> None:
    """Off: a holder that has never seen a list cannot know that there is one."""
    if defence:
        scene.offer()
        await scene.open()
    scene.server.revocations = ""
    scene.time[0] += DAY
    if defence:
        with expect_problem(problems.OLD_REVOCATIONS):
            await scene.open()
    else:
        await scene.open()


async def test_a_holder_that_needs_a_list_opens_nothing_without(scene: Scene) -> None:
    scene.holder.require_revocations = True
    with expect_problem(problems.OLD_REVOCATIONS):
        await scene.open()
    scene.offer()
    await scene.open()


async def test_a_list_that_the_server_made_up_is_refused_with_its_round(scene: Scene) -> None:
    scene.server.revocations = scene.world.server.key.sign(RevocationList(9, 0, 2**50, ()))
    with expect_problem(problems.BAD_SIGNATURE):
        await scene.open()


async def test_a_holder_remembers_over_restarts(scene: Scene) -> None:
    scene.offer(scene.world.client("client-3"))
    await scene.open()
    scene.server.revocations = ""
    await scene.holder.ledger.close()
    scene.holder.ledger = await Ledger.open(scene.holder.directory / "ledger.db")
    assert len((await scene.open()).failed) == 1


# At a client


async def test_a_client_trusts_no_stolen_server_key(scene: Scene, tmp_path: Path) -> None:
    """Off, which is before the list: it takes the task. On: also when the thief serves no list any more."""
    async with HushSumClient(
        scene.server.url,
        scene.world.client("client-0"),
        state_dir=tmp_path / "phone",
        retry=QUICK,
        clock=lambda: scene.time[0],
    ) as client:
        assert (await client.task("test-task")).hash == scene.world.task.hash
        scene.offer(scene.world.server, number=2)
        with expect_problem(problems.REVOKED_KEY, "'server'"):
            await client.task("test-task")
        for older in ("", revoked(scene.world.authority.key, now=NOW).token):
            scene.server.revocations = older
            with expect_problem(problems.REVOKED_KEY, "'server'"):
                await client.task("test-task")
        scene.offer(scene.world.client("client-0"), number=3)
        with expect_problem(problems.REVOKED_KEY, "'client-0'"):
            await client.task("test-task")
        scene.offer(number=4)
        assert (await client.task("test-task")).hash == scene.world.task.hash
        scene.time[0] += DAY
        with expect_problem(problems.OLD_REVOCATIONS):
            await client.task("test-task")
