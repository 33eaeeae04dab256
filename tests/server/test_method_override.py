"""Methods that a POST names, where a network lets only GET and POST through: the proof is for what is named."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from aiohttp import ClientResponse

from he_protocol import paths, problems
from he_protocol.documents import UpdateStatus
from he_protocol.headers import METHOD_OVERRIDE
from he_protocol.identity.jws import read_unverified
from he_protocol.identity.requests import prove_request
from he_protocol.messages import RequestProof
from he_server.http import auth

from .world import Person, Upload, World


@pytest.fixture
def ada(world: World) -> Person:
    return world.person("ada", "client")


@pytest.fixture
def upload(world: World, ada: Person) -> Upload:
    return world.upload(ada)


async def post(world: World, who: Person, upload: Upload, signed: str, *named: str) -> ClientResponse:
    """An update's bytes in a POST under a proof for the method `signed`; `named`: in the header, once for each."""
    path = paths.update_path(world.task.id, upload.id.hex())
    proof = prove_request(
        who.key,
        who.credential,
        audience=world.server_key.name,
        method=signed,
        path=path,
        now=world.clock(),
        jti=secrets.token_hex(8),
    )
    fields = [*proof.items(), *((METHOD_OVERRIDE, name) for name in named)]
    return await world.http.post(path, data=upload.frame, headers=fields)


async def test_a_post_is_the_method_that_it_names(world: World, ada: Person, upload: Upload) -> None:
    path = paths.update_path(world.task.id, upload.id.hex())
    assert (await post(world, ada, upload, "PUT", "PUT")).status == 201
    assert (await post(world, ada, upload, "PUT", "PUT")).status == 200
    assert (await world.get(ada, path, UpdateStatus)).update_id == upload.id.hex()


@pytest.mark.parametrize("signed", ["GET", "POST", "HEAD", "DELETE"])
async def test_a_proof_is_for_the_method_that_is_named(
    world: World, ada: Person, upload: Upload, signed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off, whoever sees a signed question on its way makes a signed order of it, with a body of his choice."""
    assert await world.problem(await post(world, ada, upload, signed, "PUT")) == problems.UNAUTHENTICATED
    bound = auth.check_request  # type: ignore[attr-defined]

    def unbound(authorization: str, proof: str, *, method: str, **rest: Any) -> Any:
        return bound(authorization, proof, method=read_unverified(proof, RequestProof).htm, **rest)

    monkeypatch.setattr(auth, "check_request", unbound)
    assert (await post(world, ada, upload, signed, "PUT")).status == 201


@pytest.mark.parametrize(
    "named", [["DELETE"], ["POST"], ["put"], ["BREW"], [""], ["PUT", "DELETE"], ["DELETE", "PUT"], ["PUT", "PUT"]]
)
async def test_a_method_that_the_path_does_not_have_is_refused(
    world: World, ada: Person, upload: Upload, named: list[str]
) -> None:
    """A signed PUT cannot be made a DELETE, and of two names none is chosen."""
    assert (await post(world, ada, upload, "PUT", "PUT")).status == 201
    answer = await post(world, ada, upload, "PUT", *named)
    assert set(answer.headers["Allow"].split(",")) == {"GET", "PUT"}
    assert await world.problem(answer) == problems.METHOD_NOT_ALLOWED
    path = paths.update_path(world.task.id, upload.id.hex())
    assert (await world.get(ada, path, UpdateStatus)).update_id == upload.id.hex()


async def test_a_post_that_names_nothing_is_a_post(world: World, ada: Person, upload: Upload) -> None:
    assert await world.problem(await post(world, ada, upload, "POST")) == problems.METHOD_NOT_ALLOWED
    begun = await world.call(ada, "POST", paths.TASKS, data=b"x", headers={METHOD_OVERRIDE: "POST"})
    assert await world.problem(begun) == problems.MALFORMED


async def test_only_a_post_names_methods(world: World, ada: Person, upload: Upload) -> None:
    path = paths.update_path(world.task.id, upload.id.hex())
    answer = await world.call(ada, "PUT", path, data=upload.frame, headers={METHOD_OVERRIDE: "GET"})
    assert answer.status == 201
