"""Messages and frames of other protocol versions: the server says so, and keeps nothing of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from he_protocol import documents, frames, paths
from he_protocol.messages import Reveal, RevocationList, SignedUpdate, to_json
from he_protocol.problems import UNKNOWN_PROTOCOL
from tests.support.versions import MAGICS, OTHERS, OtherVersion, reframed

from .test_refused_updates import blobs
from .test_uploads import files
from .tus import append, begun
from .world import Person, World, initial_model

other_versions = pytest.mark.parametrize("version", OTHERS, ids=repr)
other_magics = pytest.mark.parametrize("magic", MAGICS, ids=repr)


@pytest.fixture
def ada(world: World) -> Person:
    return world.person("ada", "client")


def speaking(person: Person, version: str) -> Person:
    """The same person, who signs as another version does."""
    return replace(person, key=OtherVersion.of(person.key, version))


def enrolled(world: World, version: str) -> Person:
    """Somebody whom the authority has enrolled with another version."""
    return world.person("ada", "client", authority=OtherVersion.of(world.authority, version))


@other_versions
async def test_a_task(world: World, version: str) -> None:
    config = world.config(epoch=2)
    frame = frames.start(OtherVersion.of(world.authority, version).sign(config).encode()) + initial_model(config)
    refusal = await world.refused(await world.call(None, "POST", paths.TASKS, data=frame))
    assert refusal.problem is UNKNOWN_PROTOCOL
    assert refusal.expected == "2"
    assert refusal.got == f"hushsum-taskconfig+jws;{version.removeprefix(';')}"


@other_versions
async def test_an_update(world: World, ada: Person, version: str) -> None:
    upload = world.upload(speaking(ada, version))
    assert await world.problem(await world.put(ada, upload)) is UNKNOWN_PROTOCOL
    assert (await world.round(1)).updates == 0
    assert blobs(world) == []


@other_versions
async def test_a_credential_in_an_update(world: World, ada: Person, version: str) -> None:
    upload = world.upload(ada)
    head = to_json(SignedUpdate(upload.signed.header, enrolled(world, version).credential))
    frame = frames.start(head) + upload.body
    answer = await world.call(ada, "PUT", paths.update_path(world.task.id, upload.id.hex()), data=frame)
    assert await world.problem(answer) is UNKNOWN_PROTOCOL


@other_versions
async def test_a_credential_in_a_request(world: World, version: str) -> None:
    answer = await world.call(enrolled(world, version), "GET", paths.round_path(world.task.id, 1))
    assert await world.problem(answer) is UNKNOWN_PROTOCOL


@other_versions
async def test_a_proof_of_a_request(world: World, ada: Person, version: str) -> None:
    answer = await world.call(speaking(ada, version), "GET", paths.round_path(world.task.id, 1))
    assert await world.problem(answer) is UNKNOWN_PROTOCOL


@other_versions
async def test_a_share(world: World, version: str) -> None:
    await world.fill(3)
    await world.work()
    frame = await world.share(0, 1, signer=OtherVersion.of(world.holders[0].key, version))
    assert await world.problem(await world.put_share(0, 1, frame)) is UNKNOWN_PROTOCOL
    assert (await world.round(1)).shares == 0


@other_versions
async def test_a_post_on_the_board(world: World, version: str) -> None:
    holder = world.holders[0]
    token = OtherVersion.of(holder.key, version).sign(Reveal(world.task.hash, 1, holder.name, bytes(32), ()))
    path = paths.post_path(world.task.id, "reveal", holder.name)
    answer = await world.call(holder, "PUT", path, data=frames.start(token.encode()))
    assert await world.problem(answer) is UNKNOWN_PROTOCOL
    assert (await world.get(holder, paths.board_path(world.task.id, "reveal"), documents.Board)).posts == ()


@other_versions
async def test_a_revocation_list(world: World, version: str) -> None:
    token = OtherVersion.of(world.authority, version).sign(RevocationList(1, 0, 2**50, ()))
    answer = await world.call(None, "PUT", paths.REVOCATIONS, data=token.encode())
    assert await world.problem(answer) is UNKNOWN_PROTOCOL
    assert (await world.get(None, paths.REVOCATIONS, documents.Revoked)).revocations == ""


@other_magics
async def test_frames(world: World, ada: Person, magic: bytes) -> None:
    """Of a task, a post, an update and a share: each handler reads its own."""

    async def refuses(who: Person | None, method: str, path: str, frame: bytes) -> None:
        answer = await world.call(who, method, path, data=reframed(frame, magic))
        assert await world.problem(answer) is UNKNOWN_PROTOCOL
        assert (await world.call(who, method, path, data=frame)).status == 201

    config, holder, upload = world.config(epoch=2), world.holders[0], world.upload(ada)
    task = frames.start(world.authority.sign(config).encode()) + initial_model(config)
    post = frames.start(holder.key.sign(Reveal(world.task.hash, 1, holder.name, bytes(32), ())).encode())
    await refuses(None, "POST", paths.TASKS, task)
    await refuses(holder, "PUT", paths.post_path(world.task.id, "reveal", holder.name), post)
    await refuses(ada, "PUT", paths.update_path(world.task.id, upload.id.hex()), upload.frame)
    await world.fill(2)
    await world.certify(1)
    await refuses(holder, "PUT", paths.share_path(world.task.id, 1, holder.name), await world.share(0, 1))


@other_magics
async def test_an_upload_that_an_older_program_began(world: World, ada: Person, magic: bytes) -> None:
    """It cost its bytes, and is forgotten: the same bytes would be refused for ever."""
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    frame = reframed(upload.frame, magic).ljust(len(upload.frame), b"\0")
    answer = await append(world, path, 0, frame)
    assert await world.problem(answer) is UNKNOWN_PROTOCOL
    assert files(world) == []
