"""A proof is for one request as it stands on the wire: nothing of it may change on the way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import pytest

from he_protocol import paths, problems
from he_protocol.errors import ProblemError
from he_protocol.identity.requests import prove_request
from he_server.http import auth

from .world import World

Change = Callable[[str], str]
CHANGED: dict[str, Change] = {
    "query_added": lambda path: f"{path}?version=0",
    "empty_query": lambda path: f"{path}?",
    "percent_encoded": lambda path: path.replace("model", "%6dodel"),
    "percent_encoded_slash": lambda path: path.replace("/model", "%2fmodel"),
    "double_slash": lambda path: f"/{path}",
    "double_slash_inside": lambda path: path.replace("/model", "//model"),
    "dot_segment": lambda path: path.replace("/model", "/./model"),
    "dot_dot_segment": lambda path: path.replace("/model", "/rounds/../model"),
    "trailing_slash": lambda path: f"{path}/",
    "upper_case_hash": lambda path: path.replace("/v1/", "/V1/"),
    "parameter": lambda path: f"{path};x=1",
    "fragment": lambda path: f"{path}#x",
    "absolute": lambda path: f"http://aggregator{path}",
    "another_host": lambda path: f"http://elsewhere{path}",
}


async def ask(world: World, method: str, signed: str, sent: str, *, signed_method: str = "") -> tuple[int, bytes]:
    """Status and body of an answer; `sent` goes out as it is, which no HTTP library would do."""
    who = world.holders[0]
    headers = prove_request(
        who.key,
        who.credential,
        audience="aggregator",
        method=signed_method or method,
        path=signed,
        now=world.clock(),
        jti=secrets.token_hex(8),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", world.http.port)
    lines = [f"{method} {sent} HTTP/1.1", "Host: aggregator", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def problem(answer: tuple[int, bytes]) -> problems.ProblemType:
    return ProblemError.from_document(answer[1], answer[0]).problem


async def test_what_was_signed_is_answered_with_and_without_a_query(world: World) -> None:
    path = paths.model_path(world.task.id)
    for target in (path, f"{path}?version=0"):
        assert (await ask(world, "GET", target, target))[0] == 200


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
async def test_another_target_under_the_same_proof_is_refused(world: World, change: Change) -> None:
    path = paths.model_path(world.task.id)
    for signed in (path, f"{path}?version=1"):
        assert (await ask(world, "GET", signed, change(path)))[0] in {400, 401, 404}


@pytest.mark.parametrize(
    "other", ["?version=1", "", "?version=0&x=1", "?x=1&version=0", "?version=%30", "?", "?version=0#"]
)
async def test_a_query_is_bound_as_it_was_signed(world: World, other: str) -> None:
    path = paths.model_path(world.task.id)
    assert problem(await ask(world, "GET", f"{path}?version=0", path + other)) == problems.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
async def test_a_proof_for_get_is_for_get(world: World, method: str) -> None:
    path = paths.model_path(world.task.id)
    assert (await ask(world, method, path, path, signed_method="GET"))[0] in {401, 405}


async def test_a_proof_that_binds_the_path_only_lets_a_stranger_choose_the_query(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off, as it was: whoever sits between asks for another version in somebody's name."""
    path = paths.model_path(world.task.id)
    bound = auth.check_request  # type: ignore[attr-defined]
    monkeypatch.setattr(
        auth, "check_request", lambda *args, path, **rest: bound(*args, path=path.partition("?")[0], **rest)
    )
    assert (await ask(world, "GET", path, f"{path}?version=0"))[0] == 200
