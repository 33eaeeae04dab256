"""Uploads in pieces: cut anywhere they end exact, and what has arrived is not sent again."""

from __future__ import annotations

import asyncio
import random
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed

from he_client import HushSumClient
from he_client import resumable as module
from he_client.resumable import ResumableUpload, _read
from he_client.spool import EncryptedUpdate
from he_holder.agent import Agent
from he_party.http_transport import HttpTransport, RetryPolicy
from he_protocol import documents, frames, headers, paths, tus
from he_protocol.identity.jws import token_hash, verify
from he_protocol.identity.requests import prove_request
from he_protocol.messages import Receipt, SignedUpdate, from_json
from he_protocol.problems import (
    CHECKSUM_MISMATCH,
    NOT_FOUND,
    REFUSED_BETWEEN,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
    UPLOAD_EXPIRED,
    UPLOAD_LOCKED,
    WRONG_OFFSET,
    ProblemType,
)
from he_testing.problems import expect_problem
from tests.client.test_resend import answer_of, seal
from tests.support.proxy import Proxy, Wire
from tests.support.service import QUICK, Service

ALWAYS = 0
"""`resumable_above`: every update goes in pieces."""
STUBBORN = RetryPolicy(first=0.001, longest=0.01, give_up=20.0)


def in_pieces(service: Service, url: str | None = None, retry: RetryPolicy = QUICK) -> HushSumClient:
    return HushSumClient(
        url or service.url,
        service.identity(1),
        state_dir=service.folder(1) / "state",
        retry=retry,
        clock=service.clock,
        resumable_above=ALWAYS,
    )


def frame_of(sealed: EncryptedUpdate) -> bytes:
    return frames.start(sealed.head) + b"".join(path.read_bytes() for path in sealed.sections)


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch, service: Service) -> int:
    """A quarter of an update or so at a time."""
    size = sum(part.size for part in service.task.body) // 4
    monkeypatch.setattr(module, "CHUNK_BYTES", size)
    return size


def patched(proxy: Proxy) -> bytes:
    return b"".join(seen.body for seen in proxy.of("PATCH"))


async def test_small_updates_are_put_and_large_ones_go_in_pieces(service: Service, proxy: Proxy, chunk: int) -> None:
    async with service.client(1, proxy.url) as client:
        await client.upload(service.task, await seal(client, service))
    assert (len(proxy.of("PUT")), len(proxy.of("PATCH"))) == (1, 0)
    async with Proxy(service.url) as second:
        service.clock.ahead = 61  # the round ends
        async with in_pieces(service, second.url) as client:
            sealed = await seal(client, service)
            frame = frame_of(sealed)
            sent = await client.upload(service.task, sealed, within=10)
    assert sent.bytes == len(frame)
    assert patched(second) == frame
    assert len(second.of("PUT")) == 0
    assert {len(seen.body) for seen in second.of("PATCH")[:-1]} == {chunk}
    for seen in second.of("PATCH"):
        assert seen.headers["Upload-Checksum"] == tus.checksum(seen.body)
        assert "DPoP" not in seen.headers


@pytest.mark.parametrize("seed", range(4))
async def test_cut_at_random_places_it_ends_exact(service: Service, chunk: int, seed: int) -> None:
    draw = random.Random(seed)
    port = int(service.url.rpartition(":")[2])

    def budgets() -> Iterator[int]:
        for _ in range(12):
            yield draw.randrange(1, 2 * chunk)
        while True:
            yield 1 << 40

    async with Wire(port, budgets()) as wire, in_pieces(service, wire.url, STUBBORN) as client:
        sealed = await seal(client, service)
        sent = await client.upload(service.task, sealed)
        status = await client.round(service.task, sent.round)
    assert wire.cuts > 0
    assert status.updates == 1
    receipt = verify((sealed.folder / "receipt").read_text(), Receipt, service.task.config.server.key)
    assert receipt.header == token_hash(from_json(sealed.head, SignedUpdate).header)


async def test_server_and_client_restart_in_the_middle_and_nothing_is_sent_twice(
    service: Service, proxy: Proxy, chunk: int
) -> None:
    once = RetryPolicy(first=0.001, longest=0.001, give_up=0.0)
    async with in_pieces(service, proxy.url, once) as client:
        sealed = await seal(client, service)
        frame = frame_of(sealed)
        proxy.faults["PATCH"] = ["pass", "pass", "lost"]
        with expect_problem(UNREACHABLE):
            await client.upload(service.task, sealed)
    await service.__aexit__()
    async with service, Proxy(service.url) as later, in_pieces(service, later.url) as reborn:
        (sent,) = await reborn.resume(service.task)
        assert sent.update_id == sealed.update_id
        assert patched(later) == frame[2 * chunk :]


@pytest.mark.parametrize("problem", [NOT_FOUND, UPLOAD_EXPIRED], ids=lambda p: p.slug)
async def test_an_upload_that_is_gone_is_begun_anew(
    service: Service, proxy: Proxy, chunk: int, problem: ProblemType
) -> None:
    proxy.faults["PATCH"] = ["pass", answer_of(problem)]
    async with in_pieces(service, proxy.url) as client:
        await client.upload(service.task, await seal(client, service))
    assert len(proxy.of("POST")) == 2


async def test_an_upload_that_expired_between_two_runs_is_begun_anew(
    service: Service, proxy: Proxy, chunk: int
) -> None:
    once = RetryPolicy(first=0.001, longest=0.001, give_up=0.0)
    async with in_pieces(service, proxy.url, once) as client:
        sealed = await seal(client, service)
        frame = frame_of(sealed)
        proxy.faults["PATCH"] = ["pass", "lost"]
        with expect_problem(UNREACHABLE):
            await client.upload(service.task, sealed)
    service.clock.ahead = service.settings.upload_seconds + 1
    async with Proxy(service.url) as later, in_pieces(service, later.url) as reborn:
        await reborn.resume(service.task)
    assert patched(later) == frame


async def test_a_lost_answer_to_a_chunk_is_found_out_by_asking(service: Service, proxy: Proxy, chunk: int) -> None:
    proxy.faults["PATCH"] = ["dropped", "pass", "dropped"]
    proxy.faults["POST"] = ["dropped"]
    async with in_pieces(service, proxy.url) as client:
        sent = await client.upload(service.task, await seal(client, service))
        assert (await client.round(service.task, sent.round)).updates == 1
    assert len(proxy.of("HEAD")) >= 3


@pytest.mark.parametrize("problem", [CHECKSUM_MISMATCH, WRONG_OFFSET, UPLOAD_LOCKED], ids=lambda p: p.slug)
async def test_a_chunk_that_was_not_taken_is_sent_again(
    service: Service, proxy: Proxy, chunk: int, problem: ProblemType
) -> None:
    proxy.faults["PATCH"] = [answer_of(problem)]
    async with in_pieces(service, proxy.url) as client:
        await client.upload(service.task, await seal(client, service))
    first, second = proxy.of("PATCH")[:2]
    assert first.body == second.body


async def test_a_server_that_makes_no_progress_is_left(service: Service, proxy: Proxy, chunk: int) -> None:
    proxy.faults["PATCH"] = [answer_of(WRONG_OFFSET) for _ in range(100)]
    async with in_pieces(service, proxy.url) as client:
        sealed = await seal(client, service)
        with expect_problem(UNEXPECTED_ANSWER, "no progress"):
            await client.upload(service.task, sealed)
    assert len(proxy.of("PATCH")) == module.TRIES
    assert (sealed.folder / "head").exists()


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {}),
        ("POST", {"Location": "http://elsewhere.example/v1/uploads/" + "0" * 32 + "?x"}),
        ("POST", {"Location": "ftp://elsewhere.example/v1/uploads/" + "0" * 32}),
        ("POST", {"Location": "/v1/uploads/../tasks"}),
        ("HEAD", {}),
        ("HEAD", {"Upload-Offset": "-1"}),
        ("HEAD", {"Upload-Offset": "999999999"}),
    ],
)
async def test_an_answer_outside_the_protocol_is_refused(
    service: Service, proxy: Proxy, method: str, headers: dict[str, str]
) -> None:
    proxy.faults[method] = [web.Response(status=201 if method == "POST" else 200, headers=headers)]
    async with in_pieces(service, proxy.url) as client:
        sealed = await seal(client, service)
        with expect_problem(UNEXPECTED_ANSWER):
            await client.upload(service.task, sealed)


def test_a_frame_is_read_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"defgh")
    (tmp_path / "b").write_bytes(b"ij")
    pieces: list[bytes | Path] = [b"abc", tmp_path / "a", tmp_path / "b"]
    whole = b"abcdefghij"
    for offset in range(12):
        for size in range(1, 13):
            assert _read(pieces, offset, size) == whole[offset : offset + size]


async def test_another_projects_client_uploads_a_sealed_update(service: Service, tmp_path: Path) -> None:
    """tuspy, with chunks and SHA-1 checksums: cut off in the middle, then resumed by its URL."""
    async with service.client(1) as client:
        sealed = await seal(client, service)
    path = tmp_path / "frame"
    path.write_bytes(frame_of(sealed))
    identity, collection = service.identity(1), paths.uploads_path(service.task.id)
    proof = prove_request(
        identity.key,
        identity.credential,
        audience=service.task.config.server.name,
        method="POST",
        path=collection,
        now=service.clock(),
        jti="once",
    )
    about = {"update": sealed.update_id}

    def upload() -> str:
        client = TusClient(service.url + collection, headers=proof)
        size = path.stat().st_size
        uploader = client.uploader(str(path), chunk_size=size // 5, metadata=about, upload_checksum=True)
        uploader.upload(stop_at=size // 2)
        again = client.uploader(str(path), chunk_size=size // 5, url=uploader.url, upload_checksum=True)
        assert 0 < again.offset < size
        again.upload()
        return str(uploader.url)

    url = await asyncio.to_thread(upload)
    async with HttpTransport(service.url, identity) as transport:
        answer = await transport.request("GET", url.removeprefix(service.url), headers={"Tus-Resumable": tus.VERSION})
        document = from_json(answer.body, documents.UpdateReceipt)
    receipt = verify(document.receipt, Receipt, service.task.config.server.key)
    assert receipt.update_id.hex() == sealed.update_id


async def test_what_another_projects_client_sends_damaged_is_refused(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "frame"
    async with service.client(1) as client:
        sealed = await seal(client, service)
    frame = frame_of(sealed)
    path.write_bytes(frame)

    async with HttpTransport(service.url, service.identity(1)) as transport:
        begun = await ResumableUpload(transport, service.task, sealed)._begin()

    def upload() -> None:
        uploader = TusClient(service.url).uploader(str(path), url=service.url + begun)
        assert uploader.client is not None
        uploader.client.set_headers({"Upload-Checksum": f"sha1 {b64encode(bytes(20)).decode()}"})
        uploader.upload()

    with pytest.raises(TusUploadFailed) as caught:
        await asyncio.to_thread(upload)
    assert caught.value.status_code == 460


@pytest.mark.parametrize("before", ["", "/hushsum", "https://inner.example", "http://inner:8470/a/b"])
async def test_a_proxy_may_put_its_own_name_before_a_location(before: str) -> None:
    """Where it points is not gone to: only the upload's name is taken, under the server's URL as we know it."""
    location = "/v1/uploads/" + "0" * 32
    assert (found := module._LOCATION.fullmatch(before + location))
    assert found[1] == location


@pytest.mark.parametrize("largest", [20_000, 1 << 14])
async def test_what_is_too_large_for_a_proxy_goes_in_smaller_pieces(service: Service, largest: int) -> None:
    """Also an update that would go whole; down to 16 KiB."""
    async with Proxy(service.url, largest=largest) as proxy, service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        assert sealed.size > largest
        sent = await client.upload(service.task, sealed)
    assert sent.round == 1
    passed = [len(one.body) for one in proxy.of("PATCH") if len(one.body) <= largest]
    assert sum(passed) == sent.bytes


@pytest.mark.parametrize("above", [0, 1 << 30], ids=["in pieces", "whole"])
async def test_an_update_and_a_round_pass_where_only_get_and_post_do(service: Service, above: int) -> None:
    """Key holders, too: all that they say is said in POSTs."""
    closed = dict.fromkeys(("PUT", "PATCH", "HEAD"), 403)
    async with Proxy(service.url, closed=closed) as proxy, AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(service.holder(number)) for number in range(1, 5)]
        agents = [Agent(holder, service.task, proxy.url, poll_seconds=0.02) for holder in holders]
        runs = [asyncio.create_task(agent.run()) for agent in agents]
        clients = [await stack.enter_async_context(service.client(number, proxy.url)) for number in (1, 2)]
        for client in clients:
            client._resumable_above = above
        sent = [await client.upload(service.task, await seal(client, service)) for client in clients]
        assert await clients[0].wait(service.task, sent[0]) == 1
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
    named = {one.headers.get(headers.METHOD_OVERRIDE) for one in proxy.of("POST")}
    assert named >= ({"PUT"} if above else {"PUT", "HEAD", "PATCH"})


async def test_a_proxy_that_lets_nothing_through_is_named(service: Service) -> None:
    async with Proxy(service.url, largest=100) as proxy, service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        with expect_problem(REFUSED_BETWEEN, "HTTP 413"):
            await client.upload(service.task, sealed)
    assert (sealed.folder / "head").exists()
