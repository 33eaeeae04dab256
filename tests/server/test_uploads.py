"""Resumable uploads: exact offsets whatever breaks, one acceptance, and nobody in another's name."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from he_protocol import documents, frames, headers, paths, problems, tus
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import check_credential, check_signed
from he_protocol.identity.jws import verify
from he_protocol.messages import Receipt, UpdateHeader
from he_server.blobs.upload_file import LocalUploads, UploadFile
from he_server.http.handlers import uploads
from he_server.jobs.garbage import collect_garbage
from he_server.rules.admission import Limits
from he_server.services import uploads as services
from he_server.services.backpressure import AdmissionController
from he_server.services.context import open_server
from he_server.store.updates import UpdateStore
from he_server.store.uploads import UploadStore

from .conftest import both
from .tus import append, ask, begin, begun, offset
from .world import Person, World


@pytest.fixture
def ada(world: World) -> Person:
    return world.person("ada", "client")


def settle(world: World, **changes: Any) -> None:
    world.server.settings = world.server.settings.model_copy(update=changes)


def files(world: World) -> list[Path]:
    folder = world.server.settings.data_dir / "uploads"
    return list(folder.iterdir()) if folder.exists() else []


async def receipt(world: World, path: str) -> Receipt:
    answer = await ask(world, path, "GET")
    assert answer.status == 200, await answer.text()
    document = msgspec.json.decode(await answer.read(), type=documents.UpdateReceipt)
    return verify(document.receipt, Receipt, world.server_key.public)


async def test_what_is_spoken(world: World) -> None:
    answer = await world.call(None, "OPTIONS", paths.uploads_path(world.task.id))
    assert answer.status == 204
    assert {name: answer.headers[name] for name in answer.headers if name.startswith("Tus-")} == {
        "Tus-Resumable": "1.0.0",
        "Tus-Version": "1.0.0",
        "Tus-Extension": "creation,checksum,expiration,termination",
        "Tus-Max-Size": str(world.server.settings.max_update_bytes),
        "Tus-Checksum-Algorithm": "sha1,sha256",
    }


@both
async def test_an_update_in_three_pieces_counts_once(world: World, ada: Person) -> None:
    upload = world.upload(ada, 200)
    path = await begun(world, ada, upload)
    assert await world.server.store.uploads.unfinished_bytes() == len(upload.frame)
    at = 0
    for piece in (upload.frame[:100], upload.frame[100:5000], upload.frame[5000:]):
        answer = await append(world, path, at, piece)
        at += len(piece)
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(at))
        expires = parsedate_to_datetime(answer.headers["Upload-Expires"]).timestamp()
        assert expires == world.clock() + world.server.settings.upload_seconds
        assert await offset(world, path) == at
    for _ in range(2):
        assert (await receipt(world, path)).update_id == upload.id
    assert (await append(world, path, at, b"")).status == 204
    assert files(world) == []
    assert await world.server.store.uploads.unfinished_bytes() == 0
    assert (await world.put(ada, upload)).status == 200
    await world.fill(2, 200)
    await world.work()
    await world.open(1)
    assert (await world.round(1)).state == "published"


async def test_every_answer_names_the_version(world: World, ada: Person) -> None:
    path = await begun(world, ada, world.upload(ada))
    for answer in (
        await ask(world, path),
        await ask(world, path, "GET"),
        await append(world, path, 7, b"x"),
        await world.call(None, "POST", paths.uploads_path(world.task.id)),
        await world.call(None, "PUT", path),
    ):
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert "Tus-Resumable" not in (await world.call(None, "GET", paths.TASKS)).headers


@pytest.mark.parametrize("version", ["", "0.2.2", "1.0.1"])
async def test_another_version_is_told_which_is_spoken(world: World, ada: Person, version: str) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    for answer in (
        await begin(world, ada, upload, Tus_Resumable=version),
        await append(world, path, 0, b"x", Tus_Resumable=version),
    ):
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert await world.problem(answer) == problems.TUS_VERSION
    assert await offset(world, path) == 0


async def test_a_resumption_starts_where_the_upload_stands(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:100])
    for wrong in (0, 99, 101):
        refusal = await world.refused(await append(world, path, wrong, b"x"))
        assert (refusal.problem, refusal.expected) == (problems.WRONG_OFFSET, "100")
    answer = await append(world, path, 100, b"x", Content_Type="application/octet-stream")
    assert await world.problem(answer) == problems.WRONG_MEDIA_TYPE
    for text in ("-1", "1e2", "", "٣", "9" * 16):
        assert await world.problem(await append(world, path, 0, b"x", Upload_Offset=text)) == problems.MALFORMED
    refusal = await world.refused(await ask(world, path, "GET"))
    assert (refusal.problem, refusal.got) == (problems.WRONG_OFFSET, "100")
    assert await offset(world, path) == 100


async def test_bytes_past_the_end_are_refused_and_nothing_is_kept_of_them(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:-10])
    stands = len(upload.frame) - 10

    async def chunked() -> AsyncIterator[bytes]:
        yield bytes(5)
        yield bytes(6)

    limits = Limits(1 << 24, 0, 256, 4, 10.0)  # a chunked body counts as if it filled all of its upload
    world.server.admission = AdmissionController(limits, world.server.admission._measure)
    for data in (bytes(11), chunked()):
        assert await world.problem(await append(world, path, stands, data)) == problems.TOO_LARGE
        assert await offset(world, path) == stands


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"Upload_Length": ""}, problems.MALFORMED),
        ({"Upload_Length": "-5"}, problems.MALFORMED),
        ({"Upload_Length": "", "Upload_Defer_Length": "1"}, problems.MALFORMED),
        ({"Upload_Length": str(1 << 40)}, problems.TOO_LARGE),
        ({"Upload_Length": "{body}"}, problems.WRONG_SIZE),
        ({"Upload_Length": "{over}"}, problems.WRONG_SIZE),
        ({"Upload_Metadata": ""}, problems.MALFORMED),
        ({"Upload_Metadata": "update !"}, problems.MALFORMED),
        ({"Upload_Metadata": "update " + b64encode(b"A" * 32).decode()}, problems.MALFORMED),
        ({"Upload_Metadata": "a,a"}, problems.MALFORMED),
        ({"Upload_Metadata": "a " + "A" * 4000}, problems.MALFORMED),
    ],
)
async def test_what_cannot_be_an_update_is_not_begun(
    world: World, ada: Person, change: dict[str, str], problem: problems.ProblemType
) -> None:
    body = sum(part.size for part in world.task.body)
    sizes = {"body": body + frames.PREFIX_BYTES, "over": body + frames.PREFIX_BYTES + frames.HEAD_LIMIT + 1}
    headers = {name: value.format(**sizes) for name, value in change.items()}
    assert await world.problem(await begin(world, ada, world.upload(ada), **headers)) == problem
    assert files(world) == []


def test_metadata_have_a_length() -> None:
    """Longer header lines do not get this far: the HTTP parser refuses them."""
    with pytest.raises(ProblemError, match="at most 4096"):
        tus.parse_metadata("a " + "A" * 5000)


async def test_only_clients_begin_uploads(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    assert await world.problem(await begin(world, world.holders[0], upload)) == problems.WRONG_ROLE
    answer = await world.call(None, "POST", paths.uploads_path(world.task.id), headers={"Tus-Resumable": "1.0.0"})
    assert await world.problem(answer) == problems.UNAUTHENTICATED


async def test_an_upload_that_nobody_began(world: World) -> None:
    for name in ("0" * 32, "x" * 32, "0" * 31):
        assert await world.problem(await append(world, paths.upload_path(name), 0, b"x")) == problems.NOT_FOUND
    assert (await ask(world, paths.upload_path("0" * 32))).status == 404


@both
async def test_to_begin_the_same_again_gives_the_one_that_stands(world: World, ada: Person) -> None:
    """An answer that was lost costs the client none of its few uploads."""
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:77])
    assert [await begun(world, ada, upload) for _ in range(5)] == [path] * 5
    assert await offset(world, path) == 77
    await append(world, path, 77, upload.frame[77:])
    assert await begun(world, ada, upload) == path
    assert (await receipt(world, path)).update_id == upload.id
    mallory = world.person("mallory", "client")
    assert await begun(world, mallory, upload) != path
    assert await begun(world, world.person("ada", "client"), upload) != path  # her name under another key


@both
@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_a_client_has_few_unfinished_uploads(
    world: World, ada: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of half uploads would fill the disk for everybody."""
    settle(world, max_uploads_per_client=2)
    if not defence:
        monkeypatch.setattr("he_server.store.uploads.check_cap", lambda *_: None)
    wanted = [world.upload(ada) for _ in range(6)]
    answers = await asyncio.gather(*(begin(world, ada, upload) for upload in wanted))
    assert sorted(answer.status for answer in answers) == ([201] * 2 + [429] * 4 if defence else [201] * 6)
    if not defence:
        return
    refused = next(answer for answer in answers if answer.status == 429)
    assert await world.problem(refused) == problems.TOO_MANY_UPLOADS
    assert int(refused.headers["Retry-After"]) >= 1
    await begun(world, world.person("bob", "client"), world.upload(ada))  # others are not held up
    done = next(answer.headers["Location"] for answer in answers if answer.status == 201)
    assert (await ask(world, done, "DELETE")).status == 204
    await begun(world, ada, world.upload(ada))
    assert await world.problem(await begin(world, ada, world.upload(ada))) == problems.TOO_MANY_UPLOADS
    world.clock.now += world.server.settings.upload_seconds
    ada.credential = world.person("ada", "client").credential
    await begun(world, world.person("ada", "client"), world.upload(ada))


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_a_damaged_chunk_is_dropped(
    world: World, ada: Person, algorithm: str, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defence:
        monkeypatch.setattr("he_server.services.uploads.check_chunk", lambda *_: None)
    upload = world.upload(ada)
    path = await begun(world, ada, upload)

    def checksum(data: bytes) -> str:
        return f"{algorithm} {b64encode(hashlib.new(algorithm, data).digest()).decode()}"

    good = upload.frame[:1000]
    assert (await append(world, path, 0, good, Upload_Checksum=checksum(good))).status == 204
    rest = upload.frame[1000:]
    damaged = rest[:500] + bytes([rest[500] ^ 1]) + rest[501:]
    answer = await append(world, path, 1000, damaged, Upload_Checksum=checksum(rest))
    if not defence:  # found only at the very end: everything was uploaded for nothing
        assert await world.problem(answer) == problems.DIGEST_MISMATCH
        return
    assert answer.status == 460
    assert await world.problem(answer) == problems.CHECKSUM_MISMATCH
    assert await offset(world, path) == 1000
    assert (await append(world, path, 1000, rest, Upload_Checksum=checksum(rest))).status == 204
    assert (await receipt(world, path)).update_id == upload.id


@pytest.mark.parametrize("text", ["md5 AAAA", "sha1", "sha1 AAAA", "sha256 !", "sha1 " + "A" * 44])
async def test_a_checksum_that_is_none(world: World, ada: Person, text: str) -> None:
    path = await begun(world, ada, world.upload(ada))
    assert await world.problem(await append(world, path, 0, b"x", Upload_Checksum=text)) == problems.MALFORMED
    assert await offset(world, path) == 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets up to which the server has read the bodies of PATCHes."""
    reached: list[int] = []

    def recording(length: int, offset: int, size: int) -> None:
        check_fits(length, offset, size)
        reached.append(offset + size)

    check_fits = uploads.check_fits  # type: ignore[attr-defined]
    for module in (uploads, services):
        monkeypatch.setattr(module, "check_fits", recording)
    return reached


async def broken_off(
    world: World, path: str, at: int, data: bytes, promised: int, taken: list[int], headers: dict[str, str]
) -> None:
    """A PATCH whose connection is cut after `data`; returns when the server has noticed."""
    host, port = world.http.server.host, world.http.server.port
    _, writer = await asyncio.open_connection(host, port)
    fields = {"Host": host, "Tus-Resumable": "1.0.0", "Content-Type": tus.CONTENT_TYPE, "Upload-Offset": str(at)}
    fields |= {"Content-Length": str(promised)} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"PATCH {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
    await writer.drain()
    async with asyncio.timeout(20):
        while at + len(data) not in taken:
            await asyncio.sleep(0.005)
        writer.close()
        await world.server.drain.idle.wait()


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "with checksum"])
async def test_what_arrived_before_the_connection_broke_is_not_repeated(
    world: World, ada: Person, checked: bool, taken: list[int]
) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    at, headers = 0, {"Upload-Checksum": tus.checksum(upload.frame)} if checked else {}
    for size in (1, 1000, 20_000):
        await broken_off(world, path, at, upload.frame[at : at + size], len(upload.frame) - at, taken, headers)
        at += size
        assert await offset(world, path) == at
    assert (await append(world, path, at, upload.frame[at:])).status == 204
    assert (await receipt(world, path)).update_id == upload.id


@both
async def test_it_survives_a_restart_of_the_server(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:3000])
    await world.stop()
    await world.start(open_server(world.server.settings, world.clock))
    assert await offset(world, path) == 3000
    assert (await append(world, path, 3000, upload.frame[3000:])).status == 204
    assert (await receipt(world, path)).update_id == upload.id


async def test_a_request_that_is_cancelled_while_it_takes_the_lock_gives_it_back(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await begun(world, ada, world.upload(ada))
    opening, go = threading.Event(), threading.Event()
    opened = UploadFile.open

    def slowly(self: UploadFile) -> bool:
        found = opened(self)
        opening.set()
        go.wait(5)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(UploadFile, "open", slowly)
        request = make_mocked_request("HEAD", path, {"Tus-Resumable": "1.0.0"}, match_info={"upload": path[-32:]})
        asking = asyncio.create_task(uploads.head_upload(world.server, request))
        await asyncio.to_thread(opening.wait, 5)
        asking.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert await offset(world, path) == 0


class Half:
    """A body that waits in its middle."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.go = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data[:1000]
        await self.go.wait()
        yield self.data[1000:]


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_two_at_once_do_not_mix_their_bytes(
    world: World, ada: Person, defence: bool, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defence:
        monkeypatch.setattr("he_server.blobs.upload_file.fcntl.flock", lambda *_: None)
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    body = Half(upload.frame[:5000])
    first = asyncio.create_task(append(world, path, 0, aiter(body)))
    async with asyncio.timeout(20):
        while 1000 not in taken:
            await asyncio.sleep(0.005)
    second = await append(world, path, 0, upload.frame[:5000])
    if defence:
        assert await world.problem(second) == problems.UPLOAD_LOCKED
        assert (await ask(world, path)).status == 423
        assert (await ask(world, path, "DELETE")).status == 423
    body.go.set()
    assert (await first).status == 204
    (file,) = files(world)
    assert (file.read_bytes() == upload.frame[:5000]) == defence


def test_another_process_is_kept_out_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    import subprocess
    import sys

    uploads, path = LocalUploads(tmp_path), tmp_path / "upload"
    uploads.create("upload")
    hold = f"import fcntl; file = open({str(path)!r}); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        refused = uploads.upload("upload")
        with pytest.raises(ProblemError) as caught:
            refused.open()
        refused.close()
        assert caught.value.problem == problems.UPLOAD_LOCKED
        other.kill()
        other.wait()
    file = uploads.upload("upload")
    assert file.open()
    file.close()


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_nobody_uploads_what_another_has_signed(
    world: World, ada: Person, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mallory got hold of a frame that Ada sealed, and would make it count when Ada does not want it to."""
    if not defence:

        def trusting(signed: Any, _party: Any, authority: bytes, now: float) -> UpdateHeader:
            client = check_credential(signed.credential, authority, "client", now)
            return check_signed(signed.header, UpdateHeader, client, "client")

        monkeypatch.setattr("he_server.services.submit.check_signed_update", trusting)
    upload = world.upload(ada)
    path = await begun(world, world.person("mallory", "client"), upload)
    answer = await append(world, path, 0, upload.frame)
    assert (await world.round(1)).updates == (0 if defence else 1)
    if defence:
        assert await world.problem(answer) == problems.NOT_ADDRESSED


async def test_an_upload_is_for_the_update_that_it_was_begun_for(world: World, ada: Person) -> None:
    upload, other = world.upload(ada), world.upload(ada)
    path = await begun(world, ada, other)
    assert await world.problem(await append(world, path, 0, upload.frame)) == problems.NOT_ADDRESSED


@both
async def test_a_refusal_for_good_is_repeated_and_frees_the_bytes(world: World, ada: Person) -> None:
    upload = world.upload(ada, base_version=7)
    path = await begun(world, ada, upload)
    first = await world.refused(await append(world, path, 0, upload.frame))
    assert first.problem == problems.STALE_UPDATE
    assert files(world) == []
    again = await world.refused(await ask(world, path, "GET"))
    assert again.document() == first.document()
    assert await world.problem(await append(world, path, len(upload.frame), b"")) == problems.STALE_UPDATE
    assert await offset(world, path) == len(upload.frame)
    assert await begun(world, ada, upload) != path  # who begins again means it


@both
async def test_what_has_to_wait_is_kept_and_accepted_later(world: World, ada: Person) -> None:
    await world.fill(3)
    await world.work()
    await world.open(1)
    assert (await world.put(ada, world.upload(ada))).status == 201
    upload = world.upload(ada, base_version=1)
    path = await begun(world, ada, upload)
    assert await world.problem(await append(world, path, 0, upload.frame)) == problems.ALREADY_IN_ROUND
    assert await world.problem(await ask(world, path, "GET")) == problems.ALREADY_IN_ROUND
    assert len(files(world)) == 1
    await world.fill(2, first=3)
    assert (await receipt(world, path)).update_id == upload.id
    assert (await world.round(3)).updates == 1
    assert files(world) == []


async def test_bytes_are_kept_where_they_may_pass_later_and_freed_after_any_other_refusal(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = world.upload(ada)
    for problem in problems.PROBLEMS.values():
        refusing = AsyncMock(side_effect=ProblemError(problem, "as the test wants"))
        monkeypatch.setattr("he_server.services.uploads.accept", refusing)
        path = await begun(world, ada, upload)
        assert await world.problem(await append(world, path, 0, upload.frame)) == problem
        assert await world.problem(await ask(world, path, "GET")) == problem
        assert len(files(world)) == int(problem.may_pass), problem.slug
        assert refusing.await_count == 1 + int(problem.may_pass), problem.slug
        await ask(world, path, "DELETE")
    monkeypatch.undo()
    path = await begun(world, ada, upload)
    assert (await append(world, path, 0, upload.frame)).status == 204


@both
@pytest.mark.parametrize(("owner", "method"), [(UpdateStore, "accept"), (UploadStore, "end")], ids=["update", "upload"])
@pytest.mark.parametrize("asked", ["GET", "HEAD", "PATCH"])
async def test_a_crash_between_the_last_byte_and_the_receipt(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, asked: str
) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    with monkeypatch.context() as patch:

        async def killed(*_: object) -> None:
            raise ProblemError(problems.DATABASE_UNAVAILABLE, "as if killed")

        patch.setattr(owner, method, killed)
        assert (await append(world, path, 0, upload.frame)).status == 503
    assert (await world.round(1)).updates == (1 if owner is UploadStore else 0)
    if asked == "PATCH":
        assert (await append(world, path, len(upload.frame), b"")).status == 204
    else:
        assert (await ask(world, path, asked)).status == 200
    assert (await world.round(1)).updates == 1
    assert files(world) == []
    assert (await receipt(world, path)).update_id == upload.id


@both
async def test_an_upload_expires_and_is_swept(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:100])
    kept = await begun(world, ada, world.upload(ada))
    await collect_garbage(world.server, 3600)
    assert await offset(world, path) == 100
    world.clock.now += world.server.settings.upload_seconds - 1
    assert await offset(world, kept) == 0
    world.clock.now += 1
    answer = await append(world, path, 100, upload.frame[100:])
    assert (answer.status, await world.problem(answer)) == (410, problems.UPLOAD_EXPIRED)
    assert len(files(world)) == 2
    await collect_garbage(world.server, 3600)
    assert files(world) == []
    assert await world.problem(await append(world, path, 100, b"x")) == problems.NOT_FOUND
    assert await world.server.store.uploads.unfinished_bytes() == 0


async def test_an_upload_is_given_up(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:100])
    assert (await ask(world, path, "DELETE")).status == 204
    assert files(world) == []
    assert (await ask(world, path)).status == 404


async def test_methods_come_in_a_header_where_a_network_knows_only_two(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    answer = await append(world, path, 0, upload.frame[:100], "POST", X_HTTP_Method_Override="PATCH")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "100")
    fields = {"Tus-Resumable": tus.VERSION, headers.METHOD_OVERRIDE: "HEAD"}
    asked = await world.call(None, "POST", path, headers=fields)
    assert (asked.status, asked.headers["Upload-Offset"], await asked.read()) == (200, "100", b"")
    answer = await append(world, path, 100, b"", "POST", X_HTTP_Method_Override="PUT")
    assert await world.problem(answer) == problems.METHOD_NOT_ALLOWED
    answer = await append(world, path, 100, b"", "POST", X_HTTP_Method_Override="DELETE")
    assert (answer.status, files(world)) == (204, [])


async def test_a_full_disk_leaves_the_upload_where_it_stood(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:100])
    write = UploadFile.append
    with monkeypatch.context() as patch:

        def full(self: UploadFile, data: bytes) -> None:
            write(self, data[:10])
            raise ProblemError(problems.DISK_FULL, "as the test wants")

        patch.setattr(UploadFile, "append", full)
        assert await world.problem(await append(world, path, 100, upload.frame[100:])) == problems.DISK_FULL
    assert await offset(world, path) == 100
    assert (await append(world, path, 100, upload.frame[100:])).status == 204


async def test_bytes_that_vanished_are_an_upload_that_is_not_there(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    (file,) = files(world)
    file.unlink()
    assert await world.problem(await append(world, path, 0, upload.frame)) == problems.NOT_FOUND
    assert await begun(world, ada, upload) == path  # begun anew, it stands at nothing
    assert (await append(world, path, 0, upload.frame)).status == 204


async def test_a_real_write_that_finds_no_room_leaves_the_upload_where_it_stood(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    await append(world, path, 0, upload.frame[:100])
    for call in ("write", "fsync"):
        with monkeypatch.context() as patch:

            def full(*_: object) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, call, full)
            assert await world.problem(await append(world, path, 100, upload.frame[100:200])) == problems.DISK_FULL
    at = await offset(world, path)
    assert at in {100, 200}  # what only could not be synced may be there
    assert (await append(world, path, at, upload.frame[at:])).status == 204
    assert (await receipt(world, path)).update_id == upload.id


async def test_uploads_are_begun_only_while_the_disk_has_room_for_all(
    world: World, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, free = world.upload(ada), world.upload(ada), 1 << 30
    # Others write to the real disk, too.
    monkeypatch.setattr(world.server.blobs, "free", lambda: free)
    world.server.admission.invalidate()  # it has looked at the real one
    settle(world, min_free_bytes=free - len(first.frame) - 1000)
    path = await begun(world, ada, first)
    assert await world.problem(await begin(world, ada, second)) == problems.OVERLOADED
    assert await begun(world, ada, first) == path
    assert (await append(world, path, 0, first.frame)).status == 204
    await begun(world, world.person("bob", "client"), second)


async def test_a_chunk_waits_for_room_like_an_update(world: World, ada: Person) -> None:
    upload = world.upload(ada)
    path = await begun(world, ada, upload)
    relaxed = world.server.admission
    no_slot = Limits(1 << 30, 0, 0, 4, 0.0)
    world.server.admission = AdmissionController(no_slot, world.server.admission._measure)
    assert await world.problem(await append(world, path, 0, upload.frame)) == problems.OVERLOADED
    assert await offset(world, path) == 0
    world.server.admission = relaxed
    assert (await append(world, path, 0, upload.frame)).status == 204
