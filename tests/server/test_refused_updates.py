"""Uploads that are refused: each reason alone, and nothing is kept of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from he_protocol import frames, paths, problems
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import SignedUpdate, to_json
from he_protocol.problems import ProblemType

from .conftest import both
from .world import Person, Upload, World, constant

pytestmark = pytest.mark.usefixtures("both_sizes")


@pytest.fixture
def ada(world: World) -> Person:
    return world.person("ada", "client")


def blobs(world: World) -> list[Path]:
    root = world.server.settings.data_dir / "blobs"
    return [path for name in ("updates", "partial") for path in (root / name).glob("*")]


async def _refused(world: World, client: Person, upload: Upload) -> ProblemType:
    problem = await world.problem(await world.put(client, upload))
    assert (await world.round(1)).updates == 0
    assert blobs(world) == []
    return problem


async def _refused_frame(world: World, client: Person, upload: Upload, frame: bytes) -> ProblemType:
    path = paths.update_path(world.task.id, upload.id.hex())
    problem = await world.problem(await world.call(client, "PUT", path, data=frame))
    assert blobs(world) == []
    return problem


@pytest.mark.parametrize("size", [0, 3, 40])
async def test_a_frame_that_ends_early(world: World, ada: Person, size: int) -> None:
    upload = world.upload(ada)
    assert await _refused_frame(world, ada, upload, upload.frame[:size]) == problems.MALFORMED


async def test_a_head_that_is_no_json(world: World, ada: Person) -> None:
    assert await _refused_frame(world, ada, world.upload(ada), frames.start(b"no")) == problems.MALFORMED


async def test_a_head_with_an_unknown_field(world: World, ada: Person) -> None:
    head = b'{"header":"a","credential":"b","more":1}'
    assert await _refused_frame(world, ada, world.upload(ada), frames.start(head)) == problems.UNKNOWN_FIELD


async def test_a_head_longer_than_its_limit(world: World, ada: Person) -> None:
    frame = frames.MAGIC + (frames.HEAD_LIMIT + 1).to_bytes(4, "little")
    assert await _refused_frame(world, ada, world.upload(ada), frame) == problems.TOO_LARGE


async def test_a_frame_longer_than_the_setting(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    world.server.settings = world.server.settings.model_copy(update={"max_update_bytes": 1000})
    assert await _refused(world, ada, upload) == problems.TOO_LARGE


async def test_bytes_after_the_body(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    assert await _refused_frame(world, ada, upload, upload.frame + b"\0") == problems.TRAILING_BYTES


async def test_a_body_that_ends_early(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    assert await _refused_frame(world, ada, upload, upload.frame[:-1]) == problems.WRONG_SIZE


async def test_parts_of_another_profile(world: World, ada: Person) -> None:
    upload = world.upload(ada, sections=())
    assert await _refused(world, ada, upload) == problems.WRONG_SIZE


async def test_a_body_that_is_not_the_signed_one(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    assert await _refused(world, ada, replace(upload, body=constant(world.task, 2))) == problems.DIGEST_MISMATCH


async def test_a_residue_above_its_modulus(world: World, ada: Person) -> None:
    body = b"\xff" * 7 + constant(world.task, 1)[7:]
    assert await _refused(world, ada, world.upload_of(ada, body)) == problems.RESIDUE_RANGE


async def test_a_header_that_somebody_else_signed(world: World, ada: Person) -> None:
    forged = Person("ada", "client", SigningKey.generate(), ada.credential)
    assert await _refused(world, ada, world.upload(forged)) == problems.BAD_SIGNATURE


async def test_another_clients_update(world: World, ada: Person) -> None:
    assert await _refused(world, world.person("eve", "client"), world.upload(ada)) == problems.NOT_ADDRESSED


async def test_a_header_that_names_another_client(world: World, ada: Person) -> None:
    assert await _refused(world, ada, world.upload(ada, client="eve")) == problems.NOT_ADDRESSED


async def test_an_update_under_another_id(world: World, ada: Person) -> None:
    upload = replace(world.upload(ada), id=bytes(16))
    assert await _refused(world, ada, upload) == problems.NOT_ADDRESSED


async def test_a_credential_inside_that_is_a_holders(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    mixed = replace(upload, signed=SignedUpdate(upload.signed.header, world.holders[0].credential))
    assert await _refused(world, ada, mixed) == problems.WRONG_ROLE


async def test_another_task(world: World, ada: Person) -> None:
    assert await _refused(world, ada, world.upload(ada, task_hash=bytes(32))) == problems.WRONG_TASK


async def test_another_epoch(world: World, ada: Person) -> None:
    assert await _refused(world, ada, world.upload(ada, epoch=2)) == problems.WRONG_EPOCH


async def test_an_update_from_the_future(world: World, ada: Person) -> None:
    edge = int(world.clock()) + CLOCK_SKEW_SECONDS
    assert await _refused(world, ada, world.upload(ada, created=edge + 1)) == problems.CLOCK_SKEW
    assert (await world.put(ada, world.upload(ada, created=edge))).status == 201


async def test_an_update_on_a_model_that_is_not_published(world: World, ada: Person) -> None:
    assert await _refused(world, ada, world.upload(ada, base_version=1)) == problems.STALE_UPDATE


async def test_an_update_on_a_model_that_is_too_old(world: World) -> None:
    for number in (1, 2):
        await world.fill(3, first=10 * number, base_version=number - 1)
        await world.work()
        await world.open(number)
    ada = world.person("ada", "client")
    assert await world.problem(await world.put(ada, world.upload(ada, base_version=0))) == problems.STALE_UPDATE
    assert (await world.put(ada, world.upload(ada, base_version=1))).status == 201


@both
async def test_an_id_with_other_bytes(world: World) -> None:
    ada = world.person("ada", "client")
    first = world.upload(ada)
    assert (await world.put(ada, first)).status == 201
    other = world.upload(ada, 2, update_id=first.id)
    refusal = await world.refused(await world.put(ada, other))
    assert refusal.problem == problems.UPDATE_ID_REUSED
    assert len(blobs(world)) == 1


@both
async def test_a_second_update_in_one_round(world: World) -> None:
    ada = world.person("ada", "client")
    assert (await world.put(ada, world.upload(ada))).status == 201
    assert await world.problem(await world.put(ada, world.upload(ada))) == problems.ALREADY_IN_ROUND
    assert len(blobs(world)) == 1
    await world.fill(2)
    await world.work()
    await world.open(1)
    again = world.upload(ada)  # the next round is open
    assert await world.problem(await world.put(ada, again)) == problems.REPEATED_BASE
    assert (await world.put(ada, world.upload(ada, base_version=1))).status == 201


async def test_nothing_is_read_of_a_body_that_cannot_be_accepted(world: World, ada: Person) -> None:
    upload = world.upload(ada, task_hash=bytes(32))
    head = frames.start(to_json(upload.signed))
    path = paths.update_path(world.task.id, upload.id.hex())
    assert await world.problem(await world.call(ada, "PUT", path, data=head)) == problems.WRONG_TASK
