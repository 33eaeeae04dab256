"""Transport: it retries what may succeed in a moment, and nothing else; it never reads more than asked."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from he_client.settings import ClientSettings
from he_party import http_transport
from he_party.http_transport import (
    BETWEEN,
    PROBLEM_BYTES,
    HttpTransport,
    RetryPolicy,
    parse_retry_after,
    refuses_certificate,
)
from he_party.identity import Identity
from he_party.keyfile import KeyRecord, read_private
from he_party.transport import Transport
from he_protocol import documents, frames, headers, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.identity.requests import check_request
from he_protocol.messages import RequestProof
from he_protocol.problems import (
    BAD_SETTINGS,
    BAD_SIGNATURE,
    DATABASE_UNAVAILABLE,
    DISK_FULL,
    MALFORMED,
    NOT_FOUND,
    PROBLEMS,
    REFUSED_BETWEEN,
    SHUTTING_DOWN,
    STALE_UPDATE,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
    WRONG_ROLE,
    ProblemType,
)
from he_testing.clocks import FakeClock
from he_testing.parties import Authority
from he_testing.problems import expect_problem
from tests.support.certificates import self_signed
from tests.support.proxy import Fault, Proxy
from tests.support.service import QUICK, TASK, Service

PATIENT = RetryPolicy(first=0.001, longest=0.002, give_up=5.0)
STRANGER: Identity = Authority(clock=FakeClock()).party("stranger", "client")
FOREVER = RetryPolicy(first=1.0, longest=1.0, give_up=3600.0)
BRIEF = RetryPolicy(first=0.01, longest=0.02, give_up=0.1)


def said(problem: ProblemType) -> web.Response:
    document = ProblemError(problem, "as the test wants", expected="this", got="that").document()
    return web.Response(body=document, status=problem.status, content_type="application/problem+json")


@asynccontextmanager
async def line(service: Service, url: str, retry: RetryPolicy = PATIENT) -> AsyncIterator[Transport]:
    async with HttpTransport(url, service.identity(1), retry=retry, clock=service.clock) as transport:
        yield transport


@pytest.mark.parametrize(
    "faults",
    [
        [said(SHUTTING_DOWN)],
        [said(DATABASE_UNAVAILABLE), said(SHUTTING_DOWN)],
        [said(DISK_FULL)],
        [web.Response(status=502, text="Bad Gateway")],
        [web.Response(status=503), web.Response(status=504)],
        [web.Response(status=429)],
        ["lost"],
        ["dropped", "lost", "dropped"],
    ],
    ids=["503", "503 twice", "507", "a proxy's 502", "a proxy's 503 and 504", "429", "lost", "dropped"],
)
async def test_what_passes_is_tried_again(service: Service, proxy: Proxy, faults: list[Fault]) -> None:
    proxy.faults["GET"] = list(faults)
    async with line(service, proxy.url) as transport:
        task = await transport.task(TASK)
    assert task.id == service.task.id
    assert len(proxy.seen) == len(faults) + 1


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS.values() if not p.transient],
    ids=lambda p: p.slug,
)
async def test_a_refusal_is_taken_for_an_answer(problem: ProblemType) -> None:
    with expect_problem(problem, "as the test wants"):
        await asked_once(said(problem))


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS.values() if p.transient and p is not UNEXPECTED_ANSWER],
    ids=lambda p: p.slug,
)
@pytest.mark.parametrize("status", [None, 400])
async def test_what_is_unavailable_is_asked_again_whatever_the_status(
    service: Service, proxy: Proxy, problem: ProblemType, status: int | None
) -> None:
    answer = said(problem)
    answer.set_status(status or problem.status)
    proxy.faults["GET"] = [answer]
    async with line(service, proxy.url) as transport:
        await transport.task(TASK)
    assert len(proxy.seen) == 2


async def test_a_final_refusal_is_final_under_any_status() -> None:
    answer = said(STALE_UPDATE)
    answer.set_status(503)
    with expect_problem(STALE_UPDATE):
        await asked_once(answer)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 500, 501])
@pytest.mark.parametrize(
    "body", [b"<html>no</html>", b"", b'{"type": "urn:other", "title": "", "status": 1, "detail": ""}']
)
async def test_an_answer_outside_the_protocol_is_named_and_not_repeated(status: int, body: bytes) -> None:
    with expect_problem(REFUSED_BETWEEN if status in BETWEEN else UNEXPECTED_ANSWER, f"HTTP {status}"):
        await asked_once(web.Response(status=status, body=body))


async def asked_once(answer: web.Response) -> None:
    """Get `answer`; it is an error if it was asked for more than once."""
    async with Proxy(faults={"GET": [answer, web.Response(text="asked twice")]}) as proxy:
        try:
            async with HttpTransport(proxy.url, STRANGER, retry=PATIENT) as transport:
                await transport.request("GET", "/v1/tasks")
        finally:
            assert len(proxy.seen) == 1


async def test_it_gives_up_when_nobody_listens(service: Service, closed_port: int) -> None:
    started = time.monotonic()
    async with line(service, f"http://127.0.0.1:{closed_port}", BRIEF) as transport:
        with expect_problem(UNREACHABLE, f"GET http://127.0.0.1:{closed_port}/v1/tasks"):
            await transport.task(TASK)
    assert 0.07 <= time.monotonic() - started < 3


async def test_it_gives_up_when_the_server_stays_down(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [said(SHUTTING_DOWN) for _ in range(1000)]
    async with line(service, proxy.url, BRIEF) as transport:
        with expect_problem(SHUTTING_DOWN):
            await transport.task(TASK)
    assert 1 < len(proxy.seen) < 1000


async def test_a_silent_server_is_left_at_the_timeout(service: Service) -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        identity, url = service.identity(1), f"http://127.0.0.1:{port}"
        once = RetryPolicy(first=0.001, longest=0.001, give_up=0.0)
        async with HttpTransport(url, identity, retry=once, request_seconds=0.2) as transport:
            started = time.monotonic()
            with expect_problem(UNREACHABLE, "TimeoutError"):
                await transport.request("GET", "/v1/tasks")
            assert 0.15 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], ids=["silent", "in the middle"]
)
async def test_giving_up_bounds_a_request_that_hangs(begun: bytes) -> None:
    over = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begun)
        await over.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with HttpTransport(url, STRANGER, retry=RetryPolicy(first=0.01, longest=0.02, give_up=0.3)) as transport:
            started = time.monotonic()
            with expect_problem(UNREACHABLE):
                await transport.request("GET", "/v1/tasks")
            assert time.monotonic() - started < 3
        over.set()


async def test_a_certificate_that_is_not_vouched_for_is_no_server(service: Service, tmp_path: Path) -> None:
    """Anybody on the way can make one. The task's signature would tell in the end, but the proof would be out."""
    file = tmp_path / "server.pem"
    file.write_bytes(b"".join(self_signed("127.0.0.1")))
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(file)
    async with Proxy(service.url, tls=own) as proxy:
        async with asyncio.timeout(20), line(service, proxy.url, FOREVER) as transport:  # no later try would do better
            with expect_problem(BAD_SETTINGS, "--tls-ca"):
                await transport.task(TASK)
        assert proxy.seen == []
        vouched = ssl.create_default_context(cafile=file)
        async with HttpTransport(proxy.url, service.identity(1), tls=vouched, clock=service.clock) as transport:
            assert (await transport.task(TASK)).hash == service.task.hash


@asynccontextmanager
async def asking_for_certificates(trusted: Path, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """The URL of something with TLS that wants a client certificate, and whom to trust for it."""
    file = folder / "server.pem"
    file.write_bytes(b"".join(self_signed("127.0.0.1")))
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=trusted)
    own.load_cert_chain(file)
    own.verify_mode = ssl.CERT_REQUIRED
    async with Proxy(tls=own, faults={"GET": [web.Response(text="here")]}) as proxy:
        yield proxy.url, file


@pytest.mark.parametrize("apart", [True, False], ids=["a key of its own", "one file"])
async def test_who_is_asked_for_a_certificate_shows_it(tmp_path: Path, apart: bool) -> None:
    key, certificate = self_signed("127.0.0.1")
    shown, beside = tmp_path / "client.pem", tmp_path / "client-key.pem"
    shown.write_bytes(certificate if apart else key + certificate)
    beside.write_bytes(key)
    async with asking_for_certificates(shown, tmp_path) as (url, ca):
        for files in ({}, {"tls_cert": shown, "tls_key": beside if apart else None}):
            tls = ClientSettings.load(tls_ca=ca, **files).tls
            async with HttpTransport(url, STRANGER, tls=tls, retry=BRIEF) as transport:
                if files:
                    assert (await transport.request("GET", "/x")).body == b"here"
                else:
                    with expect_problem(UNREACHABLE):  # Python's own server hangs up without a word
                        await transport.request("GET", "/x")


@pytest.mark.parametrize(
    ("reason", "certificate"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("CERTIFICATE_VERIFY_FAILED", False),  # our word on theirs
        ("SSLV3_ALERT_BAD_RECORD_MAC", False),
        (None, False),
    ],
)
def test_that_our_certificate_is_refused_is_told_apart(reason: str | None, certificate: bool) -> None:
    error = ssl.SSLError()
    error.reason = reason  # type: ignore[assignment]
    assert refuses_certificate(error) is certificate
    assert not refuses_certificate(ConnectionResetError())


@pytest.mark.parametrize("said", ["No required SSL certificate was sent", "The SSL certificate error"])
async def test_nginx_says_in_words_that_it_wants_a_certificate(said: str) -> None:
    with expect_problem(BAD_SETTINGS, "tls_cert"):
        await asked_once(web.Response(status=400, text=f"<html><title>400 {said}</title></html>"))


async def test_a_server_without_tls_is_no_server(service: Service) -> None:
    """TLS is asked for on a port that speaks plain HTTP: no request leaves without it."""
    async with Proxy(service.url) as proxy, line(service, proxy.url.replace("http:", "https:"), FOREVER) as transport:
        with expect_problem(BAD_SETTINGS, "http://"):
            await transport.task(TASK)
        assert proxy.seen == []


async def test_every_try_is_signed_anew_for_its_own_request(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = ["dropped", "lost"]
    task, identity = service.task, service.identity(1)
    path = paths.round_path(task.id, 1)
    async with line(service, proxy.url) as transport:
        await transport.request("GET", path, audience=task.config.server.name, query={"unused": "1"})
    checked = [
        check_request(
            seen.headers["Authorization"],
            seen.headers["DPoP"],
            authority=identity.authority,
            audience=task.config.server.name,
            method="GET",
            path=path + "?unused=1",
            now=service.clock(),
        )
        for seen in proxy.seen
    ]
    assert [party.name for party, _ in checked] == ["client-01"] * 3
    assert len({claims.jti for _, claims in checked}) == 3


@pytest.mark.parametrize("used", [False, True], ids=["new connection", "kept connection"])
async def test_a_lost_answer_to_a_signed_question_is_no_replay(service: Service, proxy: Proxy, used: bool) -> None:
    """aiohttp sends a GET again by itself; under the same proof the server would refuse that one."""
    path, server = paths.round_path(service.task.id, 1), service.task.config.server.name
    async with line(service, proxy.url) as transport:
        if used:
            await transport.request("GET", paths.TASKS)
        proxy.faults["GET"] = ["dropped"]
        assert (await transport.document("GET", path, documents.RoundStatus, audience=server)).round == 1
    assert [seen.path for seen in proxy.seen[-2:]] == [path, path]


async def test_without_an_audience_nothing_is_signed(service: Service, proxy: Proxy) -> None:
    async with line(service, proxy.url) as transport:
        await transport.request("GET", paths.TASKS)
        with expect_problem(UNAUTHENTICATED):
            await transport.request("GET", paths.round_path(service.task.id, 1))
    assert all("Authorization" not in seen.headers and "DPoP" not in seen.headers for seen in proxy.seen)


async def test_a_proof_for_another_server_is_refused_by_this_one(service: Service) -> None:
    async with line(service, service.url) as transport:
        with expect_problem(UNAUTHENTICATED):
            await transport.request("GET", paths.round_path(service.task.id, 1), audience="another-server")


async def test_an_answer_longer_than_asked_for_is_cut_off(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [web.Response(body=bytes(1000)), web.Response(body=bytes(1001)), web.Response(text="again")]
    async with line(service, proxy.url) as transport:
        assert (await transport.request("GET", "/exact", limit=1000)).body == bytes(1000)
        with expect_problem(TOO_LARGE, "at most 1000"):
            await transport.request("GET", "/long", limit=1000)
    assert len(proxy.seen) == 2


async def test_a_refusals_body_is_capped_too(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [web.Response(status=400, body=bytes(PROBLEM_BYTES + 1)), web.Response(text="again")]
    async with line(service, proxy.url) as transport:
        with expect_problem(TOO_LARGE):
            await transport.request("GET", "/long")
    assert len(proxy.seen) == 1


async def test_a_document_that_is_none_is_malformed(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [web.Response(text="<html>")]
    async with line(service, proxy.url) as transport:
        with expect_problem(MALFORMED, "TaskList"):
            await transport.document("GET", paths.TASKS, documents.TaskList)


async def test_an_unknown_task_is_told_apart_from_the_known(service: Service) -> None:
    async with line(service, service.url) as transport:
        assert (await transport.task(service.task.id)).token == service.task.token
        with expect_problem(NOT_FOUND, TASK):
            await transport.task("another")


async def test_a_task_of_another_authority_is_refused(service: Service, proxy: Proxy) -> None:
    token = SigningKey.generate().sign(service.task.config)
    listed = documents.TaskStatus(service.task.id, TASK, token, True, 0, 1)
    proxy.faults["GET"] = [lambda _: msgspec.json.encode(documents.TaskList((listed,)))]
    async with line(service, proxy.url) as transport:
        with expect_problem(BAD_SIGNATURE):
            await transport.task(TASK)


@pytest.mark.parametrize("place", [0, 1], ids=["listed_first", "listed_last"])
async def test_of_two_epochs_of_a_name_the_newer_is_taken(service: Service, proxy: Proxy, place: int) -> None:
    authority = read_private(service.root / "authority" / "authority.key", KeyRecord)
    newer = authority.signing.sign(msgspec.structs.replace(service.task.config, epoch=2))
    rows = [documents.TaskStatus("y", TASK, service.task.token, True, 0, 1)]
    rows.insert(place, documents.TaskStatus("x", TASK, newer, True, 0, 1))
    proxy.faults["GET"] = [lambda _: msgspec.json.encode(documents.TaskList(tuple(rows)))]
    async with line(service, proxy.url) as transport:
        assert (await transport.task(TASK)).config.epoch == 2


async def test_a_frame_is_its_head_and_its_pieces_in_order(service: Service, proxy: Proxy, tmp_path: Path) -> None:
    """Pieces may be bytes, views and files, larger than one block."""
    file = tmp_path / "piece"
    file.write_bytes(bytes(range(256)) * 2000)
    view = memoryview(b"view" * 100_000)
    proxy.faults["PUT"] = ["lost", web.Response(status=201)]
    async with line(service, proxy.url) as transport:
        assert (await transport.put_frame("/v1/x", b"the head", [b"first", file, view], "server")).status == 201
    lost, kept = proxy.seen
    assert lost.body == kept.body
    head, body = frames.split(kept.body)
    assert (head, bytes(body)) == (b"the head", b"first" + file.read_bytes() + bytes(view))
    assert kept.headers["Content-Length"] == str(len(kept.body))
    assert kept.headers["Content-Type"] == frames.CONTENT_TYPE


async def test_a_transport_that_was_not_entered_says_so(service: Service) -> None:
    with pytest.raises(RuntimeError, match="context manager"):
        await HttpTransport(service.url, service.identity(1), retry=QUICK).request("GET", "/")


async def test_it_waits_as_long_as_it_is_asked_to() -> None:
    faults: list[Fault] = [web.Response(status=429, headers={"Retry-After": "1"}), web.Response(text="now")]
    async with Proxy(faults={"GET": faults}) as proxy:
        retry = RetryPolicy(first=0.001, longest=5.0, give_up=10.0)
        async with HttpTransport(proxy.url, STRANGER, retry=retry) as transport:
            started = time.monotonic()
            await transport.request("GET", "/v1/tasks")
    assert 0.95 <= time.monotonic() - started < 4


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("0", 0.0), ("", 0.0), ("-1", 0.0), ("1e9", 0.0),
                                                ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)])  # fmt: skip
def test_reading_retry_after(value: str, seconds: float) -> None:
    assert parse_retry_after(value) == seconds


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8470",
        "ftp://server",
        "http://",
        "https:///v1",
        "http://a:port",
        "http://u:p@server",
        "http://[::1",
        "http://server?x=1",
        "http://server#x",
        "http://server:0",
        "http://server:99999",
        "server.example",
        "//server",
    ],
)
def test_a_url_that_can_never_work_is_refused_at_once(url: str) -> None:
    with expect_problem(BAD_SETTINGS, "URL"):
        HttpTransport(url, STRANGER)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://server", "http://server"),
        (" https://server:8470/ ", "https://server:8470"),
        ("https://server/hushsum//", "https://server/hushsum"),
        ("http://[::1]:8470", "http://[::1]:8470"),
        ("HTTPS://Server.Example", "https://server.example"),
    ],
)
def test_a_url_that_works(url: str, kept: str) -> None:
    assert HttpTransport(url, STRANGER).url == kept


@pytest.mark.parametrize("swallows", [True, False])
async def test_a_proxy_that_knows_no_100_continue(monkeypatch: pytest.MonkeyPatch, swallows: bool) -> None:
    """One that swallows the question is not asked twice, nor is one that answers it with 417."""
    monkeypatch.setattr(http_transport, "EXPECT_SECONDS", 0.2)
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        asked.append(b"100-continue" in head)
        if asked[-1] and swallows:
            await reader.read()
        elif asked[-1]:
            writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            await reader.readexactly(1 << 16)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, HttpTransport(url, STRANGER, retry=PATIENT) as transport:
        for _ in range(2):
            assert (await transport.request("PUT", "/x", pieces=[bytes(1 << 16)])).body == b"ok"
    assert asked == [True, False, False]


METHODS = ("PUT", "PATCH", "HEAD", "DELETE")


@pytest.mark.parametrize("status", [403, 405, 501])
async def test_methods_that_something_between_refuses_are_named_in_posts(status: int) -> None:
    """It is found out once, and remembered; the proof is for the method that is meant."""
    proxy = Proxy(faults={"POST": [web.Response() for _ in range(5)]}, closed=dict.fromkeys(METHODS, status))
    async with proxy, HttpTransport(proxy.url, STRANGER, retry=PATIENT) as transport:
        for method in ("PUT", *METHODS):
            await transport.request(method, "/x", audience="server", pieces=[b"body"] * (method == "PUT"))
    assert [one.method for one in proxy.seen] == ["PUT"] + ["POST"] * 5
    assert [one.headers.get(headers.METHOD_OVERRIDE) for one in proxy.seen] == [None, "PUT", *METHODS]
    assert [one.body for one in proxy.seen] == [b"body"] * 3 + [b""] * 3
    proved = [read_unverified(one.headers["DPoP"], RequestProof).htm for one in proxy.seen]
    assert proved == ["PUT", "PUT", *METHODS]


async def test_where_the_name_of_the_method_is_lost_both_ways_are_refused(service: Service) -> None:
    """The server sees a POST without one. What opens later is found: the other way is tried the next time."""
    path = paths.update_path(service.task.id, "00" * 16)
    proxy = Proxy(service.url, closed={"PUT": 405}, loses=frozenset({headers.METHOD_OVERRIDE}))
    async with proxy, line(service, proxy.url) as transport:
        for _ in range(2):
            with expect_problem(REFUSED_BETWEEN, "PUT"):
                await transport.request("PUT", path, audience=service.task.config.server.name, pieces=[b"x"])
        assert [one.method for one in proxy.seen] == ["PUT", "POST"] * 2
        proxy.closed.clear()
        with expect_problem(MALFORMED):
            await transport.put_frame(path, b"{", [], service.task.config.server.name)
    assert proxy.seen[-1].method == "PUT"


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("POST", 405), ("PUT", 413), ("PUT", 400)])
async def test_no_other_refusal_is_laid_to_the_method(method: str, status: int) -> None:
    async with Proxy(closed={method: status}) as proxy, HttpTransport(proxy.url, STRANGER, retry=PATIENT) as transport:
        for _ in range(2):
            with expect_problem(REFUSED_BETWEEN if status in BETWEEN else UNEXPECTED_ANSWER):
                await transport.request(method, "/x")
    assert [one.method for one in proxy.seen] == [method] * 2


async def test_a_refusal_of_the_servers_is_not_laid_to_the_method(service: Service, proxy: Proxy) -> None:
    proxy.faults["PUT"] = [said(WRONG_ROLE)]
    async with line(service, proxy.url) as transport:
        with expect_problem(WRONG_ROLE):
            await transport.request("PUT", "/x")
    assert [one.method for one in proxy.seen] == ["PUT"]


async def test_a_proxy_of_the_environment_is_used(
    service: Service, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "other.example")
    async with line(service, service.url) as transport:
        await transport.request("GET", "/healthz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with line(service, service.url) as transport:
        await transport.request("GET", "/healthz")
    assert len(proxy.seen) == 1
