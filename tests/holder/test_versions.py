"""A key holder and the authority read nothing of another protocol version, whoever signed it."""

from __future__ import annotations

import pytest

from he_authority.enrollment import issue_credential
from he_holder.rules import check_all
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.identity.revocation import Revocations
from he_protocol.messages import EnrollRequest, RevocationList, SignedUpdate, UpdateHeader
from he_protocol.problems import UNKNOWN_PROTOCOL
from he_testing.problems import expect_problem
from tests.support.openings import ask
from tests.support.parties import NOW, World
from tests.support.versions import OTHERS, OtherVersion

other_versions = pytest.mark.parametrize("version", OTHERS, ids=repr)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def updates(world: World) -> list[SignedUpdate]:
    body = {part.name: bytes(part.size) for part in world.task.body}
    return [world.update(name, body) for name in "abc"]


@other_versions
def test_a_manifest(world: World, version: str) -> None:
    sent = updates(world)
    check_all(ask(world, sent))
    with expect_problem(UNKNOWN_PROTOCOL):
        check_all(ask(world, sent, signer=OtherVersion.of(world.server.key, version)))


@other_versions
@pytest.mark.parametrize("which", ["header", "credential"])
def test_an_update_that_the_server_passes_on(world: World, version: str, which: str) -> None:
    first, *rest = updates(world)
    client = OtherVersion.of(world.client("a").key, version)
    old = {
        "header": SignedUpdate(client.sign(read_unverified(first.header, UpdateHeader)), first.credential),
        "credential": SignedUpdate(first.header, _enrolled(world, version)),
    }[which]
    with expect_problem(UNKNOWN_PROTOCOL):
        check_all(ask(world, [old, *rest]))


def _enrolled(world: World, version: str) -> str:
    key = world.client("a").key
    request = key.sign(EnrollRequest("a", "client", key.public, int(NOW)))
    return issue_credential(OtherVersion.of(world.authority.key, version), request, "client", now=NOW, days=1)


@other_versions
def test_a_revocation_list(world: World, version: str) -> None:
    newest = RevocationList(1, 0, 2**50, ())
    assert Revocations.read(world.authority.key.sign(newest), world.authority.key.public).number == 1
    with expect_problem(UNKNOWN_PROTOCOL):
        Revocations.read(OtherVersion.of(world.authority.key, version).sign(newest), world.authority.key.public)


@other_versions
def test_an_enrolment_request(world: World, version: str) -> None:
    key = SigningKey.generate()
    request = EnrollRequest("new", "client", key.public, int(NOW))
    assert issue_credential(world.authority.key, key.sign(request), "client", now=NOW, days=1)
    with expect_problem(UNKNOWN_PROTOCOL):
        issue_credential(world.authority.key, OtherVersion.of(key, version).sign(request), "client", now=NOW, days=1)
