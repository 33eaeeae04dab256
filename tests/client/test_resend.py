"""An update is sealed once, sent byte for byte the same, counted once, and dropped only when it must be."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from he_client import HushSumClient
from he_client.spool import EncryptedUpdate
from he_party.http_transport import RetryPolicy
from he_protocol import documents
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, read_unverified, token_hash, verify
from he_protocol.messages import Receipt, SignedUpdate, from_json
from he_protocol.privacy.plan import epsilon
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import (
    BAD_SIGNATURE,
    PROBLEMS,
    REFUSED_BETWEEN,
    STALE_UPDATE,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
    ProblemType,
)
from he_testing.problems import expect_problem
from tests.support.proxy import Proxy
from tests.support.schemes import assert_opens_to
from tests.support.service import Service

ONCE = RetryPolicy(first=0.001, longest=0.001, give_up=0.0)


def integers(service: Service, value: int) -> Integers:
    return np.arange(service.task.length, dtype=np.int64) * 100 * value


async def seal(client: HushSumClient, service: Service, value: int = 1, base_version: int = 0) -> EncryptedUpdate:
    vector = integers(service, value)
    return await client.encrypt(service.task, lambda start, stop: vector[start:stop], base_version=base_version)


def answer_of(problem: ProblemType) -> web.Response:
    return web.Response(
        body=ProblemError(problem, "as the test wants").document(),
        status=problem.status,
        content_type="application/problem+json",
    )


def spooled(service: Service, number: int = 1) -> list[str]:
    folder = service.folder(number) / "state" / "updates" / service.task.id
    return sorted(path.parent.name for path in folder.glob("*/head"))


async def test_a_dropped_response_is_answered_by_the_same_bytes_and_counts_once(service: Service, proxy: Proxy) -> None:
    proxy.faults["PUT"] = ["dropped"]
    async with service.committee(), service.client(1, proxy.url) as one, service.client(2) as two:
        sealed = await seal(one, service, 1)
        sent = await one.upload(service.task, sealed)
        first, second = proxy.of("PUT")
        assert first.body == second.body
        assert first.headers["DPoP"] != second.headers["DPoP"]
        assert len(first.body) == sent.bytes
        await two.upload(service.task, await seal(two, service, 10))
        assert await one.wait(service.task, sent) == 1
        opened = await one.opened_sum(service.task, sent.round)
        assert (await one.round(service.task, sent.round)).updates == 2
    assert_opens_to(service.task.config.encryption.scheme, opened, [integers(service, 1), integers(service, 10)])


async def test_a_device_that_dies_after_sealing_resends_what_it_sealed(service: Service, proxy: Proxy) -> None:
    proxy.faults["PUT"] = ["dropped"]
    async with service.client(1, proxy.url, retry=ONCE) as client:
        sealed = await seal(client, service)
        with pytest.raises(ProblemError, match=UNREACHABLE.slug):
            await client.upload(service.task, sealed)
    async with service.client(1, proxy.url) as reborn:
        (sent,) = await reborn.resume(service.task)
        assert sent.update_id == sealed.update_id
        assert await reborn.resume(service.task) == []
        assert (await reborn.round(service.task, sent.round)).updates == 1
    first, second = proxy.of("PUT")
    assert first.body == second.body


async def test_a_receipt_ends_it_and_frees_the_ciphertext(service: Service) -> None:
    async with service.client(1) as client:
        sealed = await seal(client, service)
        assert sealed.size == sum(part.size for part in service.task.body)
        await client.upload(service.task, sealed)
    assert sorted(path.name for path in sealed.folder.iterdir()) == ["head", "receipt"]
    receipt = verify((sealed.folder / "receipt").read_text(), Receipt, service.task.config.server.key)
    assert receipt.update_id.hex() == sealed.update_id


@pytest.mark.parametrize("problem", [p for p in PROBLEMS.values() if p.retry == "never"], ids=lambda p: p.slug)
async def test_a_final_refusal_drops_the_update(service: Service, proxy: Proxy, problem: ProblemType) -> None:
    proxy.faults["PUT"] = [answer_of(problem)]
    async with service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        with expect_problem(problem):
            await client.upload(service.task, sealed)
        assert spooled(service) == []
        assert await client.resume(service.task) == []
    assert len(proxy.of("PUT")) == 1


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS.values() if p.retry != "never" and p is not REFUSED_BETWEEN],
    ids=lambda p: p.slug,
)
async def test_any_other_refusal_keeps_it(service: Service, proxy: Proxy, problem: ProblemType) -> None:
    proxy.faults["PUT"] = [answer_of(problem)]
    async with service.client(1, proxy.url, retry=ONCE) as client:
        sealed = await seal(client, service)
        with expect_problem(problem):
            await client.upload(service.task, sealed)
        assert spooled(service) == [sealed.update_id]
        (sent,) = await client.resume(service.task)
    assert sent.update_id == sealed.update_id


async def test_the_servers_own_stale_refusal_drops_it(service: Service) -> None:
    async with service.client(1) as client:
        sealed = await seal(client, service, base_version=7)
        with expect_problem(STALE_UPDATE):
            await client.upload(service.task, sealed)
    assert spooled(service) == []


async def test_a_failure_while_sealing_leaves_nothing(service: Service) -> None:
    def broken(_start: int, _stop: int) -> Integers:
        raise OSError("no entropy")

    async with service.client(1) as client:
        with pytest.raises(OSError, match="no entropy"):
            await client.encrypt(service.task, broken, base_version=0)
    assert spooled(service) == []


def forged(content: bytes, **changes: Any) -> bytes:
    """The server's receipt with fields changed, under a key that is not the server's."""
    document = msgspec.json.decode(content, type=documents.UpdateReceipt)
    return msgspec.json.encode(msgspec.structs.replace(document, **changes))


async def test_a_receipt_of_another_key_is_refused_and_the_update_kept(service: Service, proxy: Proxy) -> None:
    async with service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        receipt = Receipt(service.task.hash, bytes.fromhex(sealed.update_id), "client-01", bytes(32), 1)
        proxy.faults["PUT"] = [partial(forged, receipt=SigningKey.generate().sign(receipt))]
        with expect_problem(BAD_SIGNATURE):
            await client.upload(service.task, sealed)
        assert spooled(service) == [sealed.update_id]
        assert client.privacy_spent(service.task) == epsilon(service.task.config.privacy, 1) > 0


async def test_a_lying_receipt_that_is_believed_loses_the_update(
    service: Service, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the check off: the device forgets what the server never had, and counts it."""
    monkeypatch.setattr("he_client.client.verify", lambda token, kind, _: read_unverified(token, kind))
    async with service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        header = token_hash(from_json(sealed.head, SignedUpdate).header)
        receipt = Receipt(service.task.hash, bytes.fromhex(sealed.update_id), "client-01", header, 1)
        said = documents.UpdateReceipt(SigningKey.generate().sign(receipt), 1)
        proxy.faults["PUT"] = [web.Response(status=201, body=msgspec.json.encode(said))]
        await client.upload(service.task, sealed)
        assert await client.resume(service.task) == []
    assert (await service.server.store.rounds.get(service.task.id, 1)).updates == 0


async def test_a_submit_with_a_receipt_that_cannot_be_believed_is_kept(service: Service, proxy: Proxy) -> None:
    """It may have arrived: made again, it could be in two rounds."""
    async with service.client(1, proxy.url) as client:
        receipt = Receipt(service.task.hash, bytes(16), "client-01", bytes(32), 1)
        proxy.faults["PUT"] = [partial(forged, receipt=SigningKey.generate().sign(receipt))]
        zeros = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
        with expect_problem(BAD_SIGNATURE):
            await client.submit(service.task, zeros, base_version=0)
        (kept,) = spooled(service)
        (sent,) = await client.resume(service.task)
    assert sent.update_id == kept
    assert (await service.server.store.rounds.get(service.task.id, 1)).updates == 1


@pytest.mark.parametrize("field", ["update_id", "header"])
async def test_a_receipt_for_another_update_is_refused_and_the_update_kept(
    service: Service, proxy: Proxy, field: str
) -> None:
    async with service.client(1, proxy.url) as client:
        sealed = await seal(client, service)
        honest: list[Receipt] = []

        def change(content: bytes) -> bytes:
            document = msgspec.json.decode(content, type=documents.UpdateReceipt)
            honest.append(verify(document.receipt, Receipt, service.task.config.server.key))
            other = bytes(len(getattr(honest[0], field)))
            signing = service.server.keys.own.signing
            return forged(content, receipt=signing.sign(msgspec.structs.replace(honest[0], **{field: other})))

        proxy.faults["PUT"] = [change]
        with expect_problem(UNEXPECTED_ANSWER):
            await client.upload(service.task, sealed)
        assert spooled(service) == [sealed.update_id]
        (sent,) = await client.resume(service.task)
    assert sent.update_id == honest[0].update_id.hex() == sealed.update_id


async def test_one_bad_update_does_not_hold_up_the_others(service: Service, proxy: Proxy) -> None:
    """After a long outage, what became stale is dropped and the rest is sent all the same."""
    async with service.client(1, proxy.url) as client:
        stale = await seal(client, service, base_version=7)
        await asyncio.sleep(0.01)  # the spool is in order of modification time
        good = await seal(client, service)
        sent = await client.resume(service.task)
    assert [one.update_id for one in sent] == [good.update_id]
    assert spooled(service) == [good.update_id]
    assert stale.update_id != good.update_id
