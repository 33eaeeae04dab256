"""One update that is of no use never costs a round: six clients, one bucket, a real server and real key holders."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from msgspec.structs import replace

from he_client import HushSumClient, Submission
from he_client.schemes import kahe
from he_holder import opening
from he_holder.opening import Openings
from he_holder.request import OpeningRequest
from he_party.keyfile import KeyRecord, read_private
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import Credential, Exclusion, Message, Objection, Screening, Share, UpdateHeader, Vote
from he_protocol.problems import (
    DIGEST_MISMATCH,
    EXPIRED_CREDENTIAL,
    MALFORMED,
    REVOKED_KEY,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    ProblemType,
)
from he_server.blobs.keys import key_blob, update_blob
from he_testing.problems import expect_problem
from tests.support.revocations import revoked
from tests.support.schemes import MOSTLY_KAHE, assert_opens_to
from tests.support.service import Service, copy

SIX, EXTRA, LEAST = 6, 3, 3
SECONDS = 60.0


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


def provisioned(root: Path, scheme: str, profile: str) -> Path:
    """Nine clients; a round closes with six of them, or at its deadline. The sums are exact: there is no noise."""
    plan: dict[str, Any] = {"privacy": {"unit": "none"}, "min_clients": LEAST, "max_clients": SIX, "staleness": 1}
    asyncio.run(Service.provision(root, scheme, profile, SIX + EXTRA, **plan))
    return root


@pytest.fixture(scope="session", params=MOSTLY_KAHE)
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provisioned(tmp_path_factory.mktemp("exclusions") / "world", *request.param)


@pytest.fixture
async def service(template: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(copy(template, tmp_path / "world")) as service:
        yield service


only_kahe = pytest.mark.parametrize("template", [("kahe", "kahe-30")], indirect=True, ids=["kahe"])
"""Where the test is about envelopes, or not about the scheme."""


@dataclass
class Clients:
    """What clients sent, by number (from 1), and what they meant by it."""

    service: Service
    stack: AsyncExitStack
    sent: dict[int, Submission] = field(default_factory=dict)
    vectors: dict[int, Any] = field(default_factory=dict)
    known: dict[int, HushSumClient] = field(default_factory=dict)

    async def client(self, number: int) -> HushSumClient:
        if number not in self.known:
            self.known[number] = await self.stack.enter_async_context(self.service.client(number))
        return self.known[number]

    async def send(self, *numbers: int) -> None:
        """On the newest version, acknowledged."""
        for number in numbers:
            client, task = await self.client(number), self.service.task
            vector = np.random.default_rng(number).integers(-4000, 4000, task.length)
            model = await client.pull_model(task)

            def source(start: int, stop: int, vector: Any = vector) -> Any:
                return vector[start:stop]

            sealed = await client.encrypt(task, source, base_version=model.version)
            self.sent[number], self.vectors[number] = await client.upload(task, sealed), vector

    async def send_by_deadline(self, *numbers: int) -> None:
        """The round closes with these, though it could take more."""
        await self.send(*numbers)
        self.service.clock.ahead += self.service.task.config.rounds.collect_seconds
        async with asyncio.timeout(SECONDS):
            while await self.state(numbers[0]) == "open":
                await asyncio.sleep(0.02)

    async def version_of(self, number: int) -> int:
        return await (await self.client(number)).wait(self.service.task, self.sent[number], within=SECONDS)

    async def published(self, *numbers: int) -> int:
        """The version that these updates, and no others, went into."""
        (version,) = {await self.version_of(number) for number in numbers}
        (round_,) = {self.sent[number].round for number in numbers}
        opened = await (await self.client(numbers[0])).opened_sum(self.service.task, round_)
        assert_opens_to(
            self.service.task.config.encryption.scheme, opened, [self.vectors[number] for number in numbers]
        )
        return version

    async def told(self, number: int, problem: ProblemType, detail: str = "") -> None:
        """This one's client is told why its update is in no sum."""
        with expect_problem(problem, detail):
            await self.version_of(number)

    async def state(self, number: int) -> str:
        return (await (await self.client(number)).round(self.service.task, self.sent[number].round)).state


@pytest.fixture
async def clients(service: Service) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        yield Clients(service, stack)


def authority_of(service: Service) -> SigningKey:
    return read_private(service.root / "authority" / "authority.key", KeyRecord).signing


REST = (1, 2, 3, 4, 5)


async def test_a_straggler_that_became_too_old_while_its_round_waited(service: Service, clients: Clients) -> None:
    """Fresh when it was accepted; then the two rounds before were published."""
    await clients.send_by_deadline(7, 8, 9)
    await clients.send_by_deadline(1, 2, 3)
    await clients.send(6)
    async with service.committee():
        assert await clients.published(7, 8, 9) == 1
        assert await clients.published(1, 2, 3) == 2
        await clients.send(*REST)
        assert await clients.published(*REST) == 3
        await clients.told(6, STALE_UPDATE)


async def test_a_client_that_was_revoked_while_its_round_waited(service: Service, clients: Clients) -> None:
    await clients.send(*REST, 6)
    known = revoked(authority_of(service), service.identity(6).credential, now=service.clock())
    await service.server.store.revocations.learn(known, service.clock())
    service.clock.ahead += 10
    async with service.committee():
        await clients.published(*REST)
        await clients.told(6, REVOKED_KEY)
    status = await (await clients.client(1)).round(service.task, clients.sent[1].round)
    assert [(one.update, one.failure.type) for one in status.excluded] == [(clients.sent[6].update_id, REVOKED_KEY.urn)]


async def test_a_credential_that_expired_while_its_round_waited(service: Service, clients: Clients) -> None:
    """It was good for as long as a round should take, but the one before took longer."""
    config = service.task.config
    path = service.folder(6) / "credential.jws"
    claims = read_unverified(path.read_text(), Credential)
    lasts = int(service.clock()) + 2 * config.rounds.collect_seconds + config.rounds.opening_seconds + 60
    path.write_text(authority_of(service).sign(replace(claims, exp=lasts)))
    await clients.send_by_deadline(7, 8, 9)
    await clients.send(1, 2, 3, 4, 5, 6)
    service.clock.ahead += config.rounds.collect_seconds + config.rounds.opening_seconds + 60
    async with service.committee():
        await clients.published(7, 8, 9)
        await clients.published(*REST)
        with expect_problem(EXPIRED_CREDENTIAL):  # its own request too
            await clients.version_of(6)
    store = service.server.store
    found = (await store.rounds.get(service.task.id, clients.sent[6].round)).excluded
    assert [(one.update, one.failure.type) for one in found] == [(clients.sent[6].update_id, EXPIRED_CREDENTIAL.urn)]


def sealing_badly(monkeypatch: pytest.MonkeyPatch, service: Service, *numbers: int) -> None:
    """Clients seal envelopes that these holders cannot open."""
    seal = kahe.seal_envelope  # type: ignore[attr-defined]
    bad = {service.task.config.committee.holders[number - 1].hpke for number in numbers}

    def sealed(plaintext: bytes, public: bytes, info: bytes) -> bytes:
        box = seal(plaintext, public, info)
        return bytes([box[0] ^ 1]) + box[1:] if public in bad else box

    monkeypatch.setattr(kahe, "seal_envelope", sealed)


@only_kahe
async def test_envelopes_that_two_holders_cannot_open(
    service: Service, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than may lie: where theirs are two of the three that are asked, the update is left out."""
    with monkeypatch.context() as patch:
        sealing_badly(patch, service, 1, 2)
        await clients.send(6)
    await clients.send(*REST)
    async with service.committee((1, 2, 3)):
        await clients.published(*REST)
        await clients.told(6, DIGEST_MISMATCH, "holder-1, holder-2")


@only_kahe
async def test_an_envelope_that_one_holder_cannot_open_costs_nothing(
    service: Service, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round publishes with it: the parts come from the others."""
    with monkeypatch.context() as patch:
        sealing_badly(patch, service, 1)
        await clients.send(6)
    await clients.send(*REST)
    async with service.committee((1, 2, 3, 4)):
        await clients.published(*REST, 6)


async def damage(service: Service, sent: Submission, how: str) -> None:
    """One update's key part on the server's disk is changed, or cut off with all that follows it, or gone."""
    store, task = service.server.store, service.task
    record = await store.rounds.get(task.id, sent.round)
    update = next(u for u in await store.updates.of_round(record.id) if u.update_id == sent.update_id)
    blobs, name, at = service.server.blobs, key_blob(update.blob), update.position * task.section("key").size
    if how == "gone":
        blobs.delete(name)
        return
    data = bytearray(blobs.read(name))
    data[at] ^= 1
    blobs.put(name, bytes(data[: at + 1] if how == "cut" else data))


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
async def test_a_damaged_key_part(service: Service, clients: Clients, how: str) -> None:
    await clients.send(6)
    await clients.send(*REST)
    await damage(service, clients.sent[6], how)
    async with service.committee():
        await clients.published(*REST)
        await clients.told(6, DIGEST_MISMATCH)


@only_kahe
async def test_what_cannot_be_taken_out_of_the_sum_again_takes_its_bucket_with_it(
    service: Service, clients: Clients
) -> None:
    """Six of six: too few are left, and every client is told its own reason."""
    await clients.send(*REST, 6)
    await damage(service, clients.sent[6], "changed")
    store = service.server.store
    record = await store.rounds.get(service.task.id, clients.sent[6].round)
    bad = next(u for u in await store.updates.of_round(record.id) if u.update_id == clients.sent[6].update_id)
    while not (await store.rounds.get(service.task.id, record.number)).opening:
        await asyncio.sleep(0.02)
    service.server.blobs.delete(update_blob(bad.blob))
    async with service.committee():
        await clients.told(6, TOO_FEW_CLIENTS, DIGEST_MISMATCH.title)
        await clients.told(1, TOO_FEW_CLIENTS)


# Holders that lie

LIAR = "holder-2"


def lying(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """Makes one holder lie, whatever its own code says."""
    put, honest = Openings._put, opening.make_share  # type: ignore[attr-defined]

    async def lied(self: Openings, number: int, message: Message, transport: Any) -> None:
        if self._holder.identity.name != LIAR:
            await put(self, number, message, transport)
        elif isinstance(message, Screening) and lie == "screening":
            found = [read_unverified(head.header, UpdateHeader).update_id for head in self._heads.values()]
            excluded = tuple(Exclusion(update, MALFORMED.slug) for update in found)
            await put(self, number, replace(message, excluded=excluded), transport)
        elif isinstance(message, Screening | Vote) and lie == "objection":
            about = (*self._about(number, message.manifest), 10**6, 10**6)
            await put(self, number, Objection(*about, MALFORMED.slug, "I do not like it"), transport)
        else:
            await put(self, number, message, transport)

    def wrong(request: OpeningRequest, holder: str, sums: Any) -> tuple[Share, list[bytes]]:
        share, vectors = honest(request, holder, sums)
        if holder != LIAR or lie != "share":
            return share, vectors
        vectors = [bytes(len(vector)) for vector in vectors]
        entries = (
            replace(entry, sha256=hashlib.sha256(vector).digest())
            for entry, vector in zip(share.vectors, vectors, strict=True)
        )
        return replace(share, vectors=tuple(entries)), vectors

    monkeypatch.setattr(Openings, "_put", lied)
    monkeypatch.setattr(opening, "make_share", wrong)


@only_kahe
@pytest.mark.parametrize("lie", ["share", "screening", "objection", "silence"])
async def test_one_lying_holder_of_four_holds_nothing_up_and_keeps_nothing_out(
    service: Service, clients: Clients, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    lying(monkeypatch, lie)
    holders: Sequence[int] = (1, 3, 4) if lie == "silence" else (1, 2, 3, 4)
    async with service.committee(holders):
        for _ in range(2):
            await clients.send(*REST, 6)
            await clients.published(*REST, 6)
    if lie == "objection":
        store = service.server.store
        record = await store.rounds.get(service.task.id, 1)
        assert [a.detail for a in await store.answers.of_round(record.id) if a.holder == LIAR] == ["I do not like it"]
