"""Raw bytes on the server's port: what no HTTP library would send."""

from __future__ import annotations

import re
import resource
import socket
import zlib

import pytest
import requests
from hypothesis import given

from he_protocol.errors import ProblemError
from he_server.http.openapi import PROBLEM

from .mutation import mutated
from .running import Running

HOST = b"Host: x\r\nConnection: close\r\n"


def http(method: bytes, target: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


def exchange(running: Running, sent: bytes, *, seconds: float = 2.0) -> bytes:
    """Everything that the server says until it closes; nothing if it waits for the rest of the request."""
    with socket.create_connection((running.world.http.host, running.world.http.port), timeout=seconds) as connection:
        got = b""
        try:
            connection.sendall(sent)
            while block := connection.recv(1 << 16):
                got += block
        except (TimeoutError, ConnectionError):
            pass
        return got


def checked(answer: bytes) -> int:
    """The status of the first of some answers, which must be well-formed and, where the application made them, of a
    known problem."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.fullmatch(rb"HTTP/\d\.\d (\d{3}) [^\r\n]*", head.split(b"\r\n")[0])
    assert found, answer[:200]
    status = int(found[1])
    assert status < 500
    assert b"Traceback" not in answer
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    size = int(length[1]) if length else len(body)
    if body.startswith(b"HTTP/"):  # an answer to HEAD has only the length of a body
        size = 0
    if body[:size] and PROBLEM.encode() in head:
        assert ProblemError.from_document(body[:size], status).problem.status == status
    if following := body[size:]:
        checked(following)
    return status


CASES = {
    "bytes above ASCII in the path": (http(b"GET", b"/v1/tasks/\xff\xfe"), 400),
    "no UTF-8 in the path": (http(b"GET", b"/v1/tasks/%ff%00"), 404),
    "a bad escape": (http(b"GET", b"/v1/%zz"), 404),
    "an escaped slash is no separator": (http(b"GET", b"/v1%2Ftasks"), 404),
    "a surrogate": (http(b"GET", b"/v1/tasks/%ed%a0%80"), 404),
    "dots": (http(b"GET", b"/v1/../healthz"), 404),
    "bytes above ASCII in the proof": (
        http(b"GET", b"/v1/tasks/x/model", b"Authorization: DPoP \xff\r\nDPoP: \xff\r\n"),
        400,
    ),
    "an unknown expectation": (http(b"POST", b"/v1/tasks", b"Expect: tea\r\nContent-Length: 1\r\n", b"x"), 417),
    "an unknown method": (http(b"BREW", b"/healthz"), 400),
    "HEAD": (http(b"HEAD", b"/healthz"), 405),
    "TRACE": (http(b"TRACE", b"/healthz"), 405),
    "CONNECT": (http(b"CONNECT", b"x:80"), 404),
    "no override of the method": (
        http(b"POST", b"/healthz", b"X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n"),
        405,
    ),
    "two lengths": (http(b"POST", b"/v1/tasks", b"Content-Length: 4\r\nContent-Length: 5\r\n", bytes(5)), 400),
    "a length and chunks": (
        http(b"POST", b"/v1/tasks", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        400,
    ),
    "a negative length": (http(b"POST", b"/v1/tasks", b"Content-Length: -4\r\n"), 400),
    "a length above 64 bits": (http(b"POST", b"/v1/tasks", b"Content-Length: 99999999999999999999\r\n"), 400),
    "chunks": (http(b"POST", b"/v1/tasks", b"Transfer-Encoding: chunked\r\n", b"4\r\n\0\0\0\0\r\n0\r\n\r\n"), 400),
    "a chunk without a size": (
        http(b"POST", b"/v1/tasks", b"Transfer-Encoding: chunked\r\n", b"4\r\n\5\0\0\0\r\nzz\r\n"),
        400,
    ),
    "a chunk size above 64 bits": (
        http(b"POST", b"/v1/tasks", b"Transfer-Encoding: chunked\r\n", b"f" * 20 + b"\r\nx"),
        400,
    ),
    "no gzip": (http(b"POST", b"/v1/tasks", b"Content-Encoding: gzip\r\nContent-Length: 8\r\n", b"no gzip!"), 415),
    "an unknown encoding": (http(b"POST", b"/v1/tasks", b"Content-Encoding: br\r\nContent-Length: 1\r\n", b"x"), 415),
    "two codings": (
        http(b"PUT", b"/v1/revocations", b"Content-Encoding: identity, gzip\r\nContent-Length: 1\r\n", b"x"),
        415,
    ),
    "a coding twice": (
        http(
            b"POST",
            b"/v1/tasks",
            b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n",
            b"x",
        ),
        415,
    ),
    "a coding of the transfer": (
        http(b"POST", b"/v1/tasks", b"Transfer-Encoding: gzip, chunked\r\n", b"1\r\nx\r\n0\r\n\r\n"),
        415,
    ),
    "a body where none is taken": (http(b"GET", b"/healthz", b"Content-Length: 1\r\n", b"x"), 413),
    "a long header": (http(b"GET", b"/healthz", b"X: " + b"a" * 20000 + b"\r\n"), 400),
    "many headers": (http(b"GET", b"/healthz", b"X: a\r\n" * 5000), 400),
    "a long path": (http(b"GET", b"/" + b"a" * 20000), 400),
    "a NUL in a header": (http(b"GET", b"/healthz", b"X: a\0b\r\n"), 400),
    "another version": (b"GET /healthz HTTP/9.9\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_requests(case: str, running: Running) -> None:
    sent, status = CASES[case]
    assert checked(exchange(running, sent)) == status


def test_a_length_above_the_limit(running: Running) -> None:
    """Refused before the body comes: as too large, or already for want of room."""
    sent = http(b"POST", b"/v1/tasks", b"Content-Length: 999999999999\r\n")
    assert checked(exchange(running, sent)) in {413, 429}


@given(mutated([sent for sent, _ in CASES.values()], most=6))
def test_damaged_requests(running: Running, sent: bytes) -> None:
    """An answer to each request that came whole, of which the bytes may hold several."""
    answer = exchange(running, sent, seconds=0.3)
    if answer:
        checked(answer)


def test_a_compressed_body_is_not_made_large(running: Running) -> None:
    """A body that stands for a thousand times its size is refused, and nobody undoes its coding."""
    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(128)) + squeeze.flush()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for method, path in ((b"POST", b"/v1/tasks"), (b"PUT", b"/v1/revocations"), (b"GET", b"/healthz")):
        headers = b"Content-Encoding: deflate\r\nContent-Length: %d\r\n" % len(bomb)
        assert checked(exchange(running, http(method, path, headers, bomb))) == 415
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 64 * 1024
    assert after.ru_utime - before.ru_utime < 0.25  # to undo it three times takes a second


def test_the_server_is_well_after_all_that(running: Running) -> None:
    assert requests.get(f"{running.url}/readyz", timeout=10).status_code == 200
    assert 'problem="internal"' not in requests.get(f"{running.url}/metrics", timeout=10).text
