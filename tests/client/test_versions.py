"""What servers of other protocol versions say to a client, and what the client makes of a refusal of its own."""

from __future__ import annotations

import msgspec
import pytest
from aiohttp import web

from he_party.enrolling import CREDENTIAL_FILE
from he_party.identity import Identity
from he_protocol import documents
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import Credential, Receipt, RevocationList, UpdateHeader, to_json
from he_protocol.problems import UNKNOWN_PROTOCOL
from he_protocol.task import Task
from he_testing.problems import expect_problem
from tests.client.test_resend import answer_of, seal, spooled
from tests.support.proxy import Proxy
from tests.support.service import TASK, Service
from tests.support.versions import OTHERS, OtherVersion

other_versions = pytest.mark.parametrize("version", OTHERS, ids=repr)


def said(document: documents.Document) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


@other_versions
async def test_a_task(service: Service, proxy: Proxy, version: str) -> None:
    token = OtherVersion.of(SigningKey.generate(), version).sign(service.task.config)
    listed = documents.TaskStatus(service.task.id, TASK, token, True, 0, 1)
    proxy.faults["GET"] = [said(documents.TaskList((listed,)))]
    async with service.client(1, proxy.url) as client:
        with expect_problem(UNKNOWN_PROTOCOL, "expected 2"):
            await client.task(TASK)
    with expect_problem(UNKNOWN_PROTOCOL):
        Task.from_token(token, bytes(32))


@other_versions
async def test_a_receipt(service: Service, proxy: Proxy, version: str) -> None:
    """The update is kept: what this server says of it is not understood."""

    def older(body: bytes) -> bytes:
        answer = msgspec.json.decode(body, type=documents.UpdateReceipt)
        receipt = OtherVersion.of(SigningKey.generate(), version).sign(read_unverified(answer.receipt, Receipt))
        return msgspec.json.encode(msgspec.structs.replace(answer, receipt=receipt))

    proxy.faults["PUT"] = [older]
    async with service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        with expect_problem(UNKNOWN_PROTOCOL):
            await client.upload(service.task, sealed)
    assert spooled(service) == [sealed.update_id]


@other_versions
async def test_a_revocation_list(service: Service, proxy: Proxy, version: str) -> None:
    token = OtherVersion.of(SigningKey.generate(), version).sign(RevocationList(1, 0, 2**50, ()))
    proxy.faults["GET"] = ["pass", said(documents.Revoked(token))]
    async with service.client(1, proxy.url) as client:
        with expect_problem(UNKNOWN_PROTOCOL):
            await client.task(TASK)


async def test_a_client_raises_what_a_server_of_another_version_says(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [answer_of(UNKNOWN_PROTOCOL)]
    async with service.client(1, proxy.url) as client:
        with expect_problem(UNKNOWN_PROTOCOL, "as the test wants"):
            await client.task(TASK)


@other_versions
async def test_an_update_that_an_older_program_has_sealed(service: Service, version: str) -> None:
    """A real server refuses it for good, so that it is dropped and holds nothing up; it is never sealed anew."""
    async with service.client(1) as client:
        sealed = await seal(client, service)
        identity = service.identity(1)
        head = client._spool(service.task).header(sealed)
        key = OtherVersion.of(identity.key, version)
        old = msgspec.structs.replace(head, header=key.sign(read_unverified(head.header, UpdateHeader)))
        (sealed.folder / "head").write_bytes(to_json(old))
        assert await client.resume(service.task) == []
        assert spooled(service) == []
        assert (await client.round(service.task, 1)).updates == 0


@other_versions
def test_an_identity_that_was_enrolled_with_another_version(service: Service, version: str) -> None:
    path = service.folder(1) / CREDENTIAL_FILE
    credential = read_unverified(path.read_text().strip(), Credential)
    path.write_text(OtherVersion.of(SigningKey.generate(), version).sign(credential))
    with expect_problem(UNKNOWN_PROTOCOL):
        Identity.load(service.folder(1))
