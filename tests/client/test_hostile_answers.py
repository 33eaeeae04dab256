"""Answers of a server that lies: sent elsewhere, inflated, endless, with cookies, or a model that nobody signed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace
from safetensors.numpy import save

from he_client import HushSumClient
from he_client import published as published_module
from he_party import http_transport
from he_party.board import ServerBoard
from he_party.http_transport import MAX_HEADERS, HttpTransport, RetryPolicy
from he_protocol import documents, headers, limits, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import PublishedModel, Vote, to_json
from he_protocol.problems import BAD_SIGNATURE, DIGEST_MISMATCH, TOO_LARGE, UNEXPECTED_ANSWER, UNREACHABLE
from he_protocol.task import Task
from he_testing.fake_server import FakeServer
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.parties import NOW, World

ONCE = RetryPolicy(give_up=0)
MIB = 1 << 20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def world() -> World:
    """Ten parameters."""
    return World(plan={"scheme": "kahe", "profile": "kahe-14", "scale": 16.0})


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


def always(**answer: Any) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(**answer)  # type: ignore[arg-type]

    return handler


async def endless(request: web.Request) -> web.StreamResponse:
    """A body without a declared length, until its reader hangs up."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(bytes(MIB))
    except ConnectionError:
        return response


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_nobody_is_sent_elsewhere(world: World, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, a key holder asks inside its own network, with a fresh proof, wherever the server says."""
    seen: list[str] = []

    async def inside(request: web.Request) -> web.Response:
        seen.append(request.method)
        return web.Response(body=b"{}")

    async with (
        serving(inside) as internal,
        serving(always(status=status, headers={"Location": internal})) as url,
        HttpTransport(url, world.committee[0], retry=ONCE) as line,
    ):
        with expect_problem(UNEXPECTED_ANSWER, f"HTTP {status}"):
            await line.request("GET", paths.openings_path(world.task.id), audience="server")
        with expect_problem(UNEXPECTED_ANSWER):
            await line.put_frame(paths.share_path(world.task.id, 1, "holder-0"), b"head", [b"share"], "server")
        assert seen == []
        request = line._session.request  # type: ignore[union-attr]
        monkeypatch.setattr(line._session, "request", lambda *a, **k: request(*a, **{**k, "allow_redirects": True}))
        if status in {301, 302, 303, 307, 308}:
            await line.request("GET", paths.openings_path(world.task.id), audience="server")
            assert seen == ["GET"]


@pytest.mark.parametrize("status", [206, 202, 203, 226])
async def test_other_successes_are_none(world: World, status: int) -> None:
    async with serving(always(status=status, body=b"{}")) as url, HttpTransport(url, world.committee[0]) as line:
        with expect_problem(UNEXPECTED_ANSWER, f"HTTP {status}"):
            await line.request("GET", "/x")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity"])
async def test_nothing_is_inflated(world: World, coding: str) -> None:
    bomb = gzip.compress(bytes(8 * MIB))

    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Encoding": coding})

    async with serving(handler) as url, HttpTransport(url, world.committee[0], retry=ONCE) as line:
        with expect_problem(UNEXPECTED_ANSWER, "Content-Encoding"):
            await line.request("GET", "/x", limit=1 << 30)
        with expect_problem(UNEXPECTED_ANSWER):
            async for _ in line.records("/x", audience="server", size=8, count=MIB):
                pass


async def test_a_refusal_is_not_inflated_either(world: World) -> None:
    """65 kB of gzip are 64 MiB of zeros: read as they are, they are no problem document."""
    bomb = gzip.compress(bytes(32 * MIB))
    assert len(bomb) < http_transport.PROBLEM_BYTES
    handler = always(status=400, body=bomb, headers={"Content-Encoding": "gzip"})
    async with serving(handler) as url, HttpTransport(url, world.committee[0], retry=ONCE) as line:
        with expect_problem(UNEXPECTED_ANSWER), peak_below(8 * MIB):
            await line.request("GET", "/x")


async def test_no_cookie_is_kept(world: World) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie", ""))
        return web.Response(body=b"{}", headers={"Set-Cookie": "track=me"})

    async with serving(handler) as url, HttpTransport(url, world.committee[0]) as line:
        for _ in range(2):
            await line.request("GET", "/x")
    assert seen == ["", ""]


@pytest.mark.parametrize(
    "headers",
    [{f"X-{i}": "x" for i in range(MAX_HEADERS + 40)}, {"X-Long": "x" * 20_000}],
    ids=["many", "long"],
)
async def test_headers_are_bounded(world: World, headers: dict[str, str]) -> None:
    async with (
        serving(always(body=b"{}", headers=headers)) as url,
        HttpTransport(url, world.committee[0], retry=ONCE) as line,
    ):
        with expect_problem(UNREACHABLE):
            await line.request("GET", "/x")


class peak_below:
    """Python's and numpy's memory may not grow by so many bytes in the block."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.limit, peak


def device(url: str, world: World, folder: Path) -> HushSumClient:
    return HushSumClient(url, world.client("device"), state_dir=folder, clock=lambda: NOW, retry=ONCE)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_ten_parameters_take_no_gigabytes(world: World, tmp_path: Path) -> None:
    """Of the model, of a sum, of a document, of a post: what is read is bounded by the signed task."""
    assert world.task.parameters == 10
    async with serving(endless) as url, device(url, world, tmp_path) as client:
        with peak_below(16 * MIB):
            with expect_problem(TOO_LARGE, str(world.task.model_limit)):
                await client.pull_model(world.task)
            with expect_problem(TOO_LARGE, str(world.task.sum_limit)):
                await client.opened_sum(world.task, 1)
            with expect_problem(TOO_LARGE):
                await client.round(world.task, 1)
            with expect_problem(TOO_LARGE):
                await client._transport.document("GET", "/x", documents.UpdateStatus)
            with expect_problem(TOO_LARGE):
                await client._transport.request("PUT", "/x", pieces=[b"x"])
    assert left(tmp_path) == []


async def test_a_download_that_is_refused_leaves_no_file(world: World, tmp_path: Path) -> None:
    async with serving(endless) as url, HttpTransport(url, world.committee[0], retry=ONCE) as line:
        with expect_problem(TOO_LARGE):
            await line.download("/x", tmp_path / "file", audience="server", limit=2 * MIB)
    assert left(tmp_path) == []


async def test_a_list_of_tasks_is_bounded(world: World, tmp_path: Path) -> None:
    async with serving(endless) as url, device(url, world, tmp_path) as client:
        with expect_problem(TOO_LARGE, str(limits.TASK_LIST)):
            await client.task("keyboard")


async def test_a_declared_length_is_refused_before_it_is_read(world: World, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(1 << 40)})
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.sleep(30)
        return response

    async with serving(handler) as url, device(url, world, tmp_path) as client:
        async with asyncio.timeout(20):
            with expect_problem(TOO_LARGE):
                await client.pull_model(world.task)


def model_of(world: World, value: float) -> bytes:
    return save({spec.name: np.full(spec.shape, value, dtype=np.float32) for spec in world.tensors})


def published(world: World, body: bytes, version: int, *, status: int = 200, key: SigningKey | None = None) -> Handler:
    """`status` 304: the word for it, without the body."""
    said = PublishedModel(world.task.hash, version, hashlib.sha256(body).digest())
    token = (key or world.server.key).sign(said)
    return always(body=body if status == 200 else b"", status=status, headers={headers.MODEL: token})


async def test_version_0_is_the_model_that_the_authority_signed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, other = model_of(world, 0.0), model_of(world, 1.0)
    assert hashlib.sha256(honest).digest() == world.task.config.model.initial_model
    async with serving(published(world, honest, 0)) as url, device(url, world, tmp_path) as client:
        assert (await client.pull_model(world.task)).version == 0
    async with serving(published(world, other, 0)) as url, device(url, world, tmp_path) as client:
        with expect_problem(DIGEST_MISMATCH, "initial model"):
            await client.pull_model(world.task)
        with monkeypatch.context() as off:
            off.setattr(published_module, "check_published", lambda task, token, sha256: 0)
            assert (await client.pull_model(world.task)).tensors["w"].max() == 1.0


async def test_whoever_stands_between_publishes_no_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that ends the TLS connection could give any model out as the newest, and its tag with it."""
    handler = published(world, model_of(world, 2.0), 7, key=SigningKey.generate())
    async with serving(handler) as url, device(url, world, tmp_path) as client:
        with expect_problem(BAD_SIGNATURE):
            await client.pull_model(world.task)
        assert left(tmp_path) == []
        monkeypatch.setattr(published_module, "verify", lambda token, kind, public: read_unverified(token, kind))
        assert (await client.pull_model(world.task)).version == 7


async def test_the_word_for_one_version_is_not_for_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old model under a new number would make its updates look fresh."""
    new = PublishedModel(world.task.hash, 9, hashlib.sha256(model_of(world, 9.0)).digest())
    mixed = always(body=model_of(world, 1.0), headers={headers.MODEL: world.server.key.sign(new)})
    async with serving(mixed) as url, device(url, world, tmp_path) as client:
        with expect_problem(DIGEST_MISMATCH):
            await client.pull_model(world.task)
        monkeypatch.setattr(published_module, "check_published", lambda task, token, sha256: new.version)
        assert (await client.pull_model(world.task)).version == 9


async def test_a_model_that_is_refused_leaves_the_kept_one(world: World, tmp_path: Path) -> None:
    body = model_of(world, 3.0)
    async with serving(published(world, body, 4)) as url, device(url, world, tmp_path) as client:
        assert (await client.pull_model(world.task)).version == 4
    kept = left(tmp_path)
    assert len(kept) == 1
    for wrong in (
        published(world, b"x" * 99, 5),
        published(world, body[:-1], 5),
        published(world, b"y", 5, status=304),
    ):
        async with serving(wrong) as url, device(url, world, tmp_path) as client:
            with pytest.raises(ProblemError, match=r"digest-mismatch|unexpected-answer"):
                await client.pull_model(world.task)
    assert left(tmp_path) == kept
    async with serving(published(world, body, 4, status=304)) as url, device(url, world, tmp_path) as client:
        assert (await client.pull_model(world.task)).tensors["w"].max() == 3.0


async def test_a_large_model_is_in_memory_once(tmp_path: Path) -> None:
    """As tensors; before, its bytes stood beside them, twice, and the flat vector too: 67 MB of 17."""
    world = World(plan={"scheme": "kahe", "profile": "kahe-14", "scale": 16.0})
    size = 4 * MIB
    config = changed(world.task.config, tensors=(replace(world.tensors[0], shape=(size,)),))
    task = Task(config, "", world.task.hash)
    body = save({"w": np.ones(size, dtype=np.float32)})
    async with serving(published(world, body, 1)) as url, device(url, world, tmp_path) as client:
        with peak_below(2 * len(body)):
            await client.pull_model(task)


def test_honest_answers_fit() -> None:
    """The largest that this code makes, for a committee and a round of some size."""
    world = World(5, {"scheme": "kahe", "profile": "kahe-14", "scale": 4.0, "max_clients": 50, "threshold": 3})
    updates = [world.update(f"client-{i}") for i in range(50)]
    manifest, ordered = world.manifest(updates)
    votes = tuple(world.committee[i].key.sign(Vote(world.task.hash, 1, 1, bytes(32), f"holder-{i}")) for i in range(5))
    assert len(to_json(documents.Opening("vote", manifest, votes))) < limits.opening(world.task) - limits.revocations()
    assert len(to_json(documents.Heads(ordered))) < limits.heads(world.task)


async def test_a_post_of_the_key_ceremony_is_bounded(tmp_path: Path) -> None:
    from he_client.schemes.ckks import make_encryptor

    world = World()
    task = world.task
    async with FakeServer(task) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("he_client.schemes.ckks.check_confirmations", lambda task, posts: bytes(32))
            server.replaced["GET", paths.post_path(task.id, "confirmation", "holder-0")] = endless  # type: ignore[assignment]
            async with HttpTransport(server.url, world.client("device"), retry=ONCE) as line:
                with expect_problem(TOO_LARGE):
                    await make_encryptor(task, "device", ServerBoard(line, task), tmp_path)
                server.replaced["GET", paths.board_path(task.id, "confirmation")] = endless  # type: ignore[assignment]
                with expect_problem(TOO_LARGE, str(limits.board(task))):
                    await make_encryptor(task, "device", ServerBoard(line, task), tmp_path)
