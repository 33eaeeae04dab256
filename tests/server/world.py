"""Everybody around a server, as far as it can see them: keys, credentials, signed messages, real HTTP."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from msgspec.structs import replace
from safetensors.numpy import save
from yarl import URL

from he_party.keyfile import KeyRecord
from he_protocol import documents, frames, paths
from he_protocol.arithmetic.residues import ResidueLayout, pack
from he_protocol.config import HolderEntry, ServerEntry, TaskConfig, TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, fingerprint, jwk_x, payload_hash, read_unverified
from he_protocol.identity.requests import prove_request
from he_protocol.messages import (
    Cnf,
    Credential,
    Exclusion,
    FailedBucket,
    Jwk,
    Manifest,
    Role,
    Screening,
    SectionEntry,
    Share,
    ShareVector,
    SignedUpdate,
    UpdateHeader,
    Vote,
    to_json,
)
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.problems import ProblemType
from he_protocol.schemes.registry import load_scheme
from he_protocol.task import Task
from he_server.http.app import make_app
from he_server.http.listening import Listener
from he_server.http.process import make_listener, make_runner
from he_server.jobs.worker import Worker
from he_server.services.context import ServerContext
from he_server.store.address import Address
from he_server.store.engine import make_engine
from he_testing.clocks import FakeClock
from he_testing.plans import changed, made
from tests.protocol.parties import hpke_key

START = 1_900_000_000.0
LIFE = 365 * 86400
UNIT = 2**110  # ckks-8192's scale: the constant polynomial v * UNIT decodes to v in every slot


@dataclass
class Person:
    """Somebody with a key and a credential."""

    name: str
    role: Role
    key: SigningKey = field(default_factory=SigningKey.generate)
    credential: str = ""


@dataclass(frozen=True)
class Upload:
    """One update, ready to send."""

    id: bytes
    signed: SignedUpdate
    body: bytes

    @property
    def frame(self) -> bytes:
        return frames.start(to_json(self.signed)) + self.body


class Front(TestServer):
    """The application behind the server's own listener, with its limits, as `he-server serve` has it."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(make_app(server, work=False))
        self._shown = server
        self._listener: Listener

    async def start_server(self, loop: Any = None, **_: Any) -> None:
        if self.runner is None:
            self.runner = make_runner(self.app)
            await self.runner.setup()
            self._listener = make_listener(self.runner, self._shown.connections)
            self.host, self.scheme = "127.0.0.1", "http"
            self.port = await self._listener.start(self.host, 0)
            self._root = URL.build(scheme=self.scheme, host=self.host, port=self.port)

    async def close(self) -> None:
        if not self.closed:
            await self._listener.stop()
        await super().close()


class World:
    """An authority, a committee, clients, and a running server that they talk to."""

    def __init__(self, authority: SigningKey, server_key: KeyRecord, clock: FakeClock) -> None:
        self.authority = authority
        self.server_key = server_key
        self.clock = clock
        self.server: ServerContext
        self.http: TestClient[Any, Any]
        self.worker: Worker
        self.holders = [self.person(f"holder-{i}", "holder") for i in range(3)]
        self.task: Task

    async def start(self, server: ServerContext) -> None:
        self.server = server
        self.http = TestClient(Front(server))
        await self.http.start_server()
        self.worker = Worker(server)

    async def stop(self) -> None:
        await self.http.close()

    @asynccontextmanager
    async def other_database(self, address: Address) -> AsyncIterator[None]:
        """While the server's database is another one."""
        database = self.server.store.database
        good, database._engine = database._engine, make_engine(address)
        try:
            yield
        finally:
            await database.close()
            database._engine = good

    def person(self, name: str, role: Role, *, authority: SigningKey | None = None, expired: bool = False) -> Person:
        person = Person(name, role)
        issuer = authority or self.authority
        now = int(self.clock())
        person.credential = issuer.sign(
            Credential(
                iss=fingerprint(issuer.public),
                sub=name,
                role=role,
                iat=now - LIFE if expired else now,
                exp=now - 1 if expired else now + LIFE,
                cnf=Cnf(Jwk(jwk_x(person.key.public))),
            )
        )
        return person

    def config(self, **changes: Any) -> TaskConfig:
        config = made(
            name="demo",
            scheme="ckks",
            profile="ckks-8192",
            fingerprint=load_scheme("ckks", "ckks-8192").profile.fingerprint,
            epoch=1,
            tensors=(TensorSpec("w", (2, 2)), TensorSpec("b", (2,))),
            scale=100.0,
            value_range=10.0,
            privacy=PrivacyPlan("none"),
            min_clients=2,
            max_clients=3,
            collect_seconds=60,
            opening_seconds=120,
            staleness=1,
            max_openings=10,
            server=ServerEntry(self.server_key.name, self.server_key.public),
            holders=tuple(HolderEntry(h.name, h.key.public, hpke_key(n).public) for n, h in enumerate(self.holders)),
            threshold=2,
            agreement=2,
            allow_no_collusion=True,
            initial_model=bytes(32),
        )
        config = changed(config, **changes)
        return changed(config, **({"initial_model": hashlib.sha256(initial_model(config)).digest()} | changes))

    async def add_task(self, **changes: Any) -> Task:
        config = self.config(**changes)
        token = self.authority.sign(config)
        response = await self.http.post(paths.TASKS, data=frames.start(token.encode()) + initial_model(config))
        assert response.status == 201, await response.text()
        self.task = Task.from_token(token, self.authority.public)
        return self.task

    async def add_task_of_four(self, **changes: Any) -> Task:
        """A task with one more holder, whose committee is 2/4/3: one liar does not matter, one may be away."""
        self.holders.append(self.person("holder-3", "holder"))
        return await self.add_task(threshold=2, agreement=3, allow_no_collusion=False, **changes)

    async def call(
        self, who: Person | None, method: str, path: str, *, data: Any = None, **extra: Any
    ) -> ClientResponse:
        headers = dict(extra.pop("headers", {}))
        if who is not None:
            headers |= prove_request(
                who.key,
                who.credential,
                audience=self.server_key.name,
                method=method,
                path=URL(path).raw_path_qs,
                now=self.clock(),
                jti=secrets.token_hex(8),
            )
        return await self.http.request(method, path, data=data, headers=headers, **extra)

    async def get(self, who: Person | None, path: str, kind: type[Any]) -> Any:
        response = await self.call(who, "GET", path)
        assert response.status == 200, await response.text()
        return msgspec.json.decode(await response.read(), type=kind)

    async def refused(self, answer: ClientResponse) -> ProblemError:
        """The refusal of an answer that must be one."""
        assert answer.content_type == "application/problem+json", await answer.text()
        refusal = ProblemError.from_document(await answer.read(), answer.status)
        assert answer.status == refusal.problem.status
        return refusal

    async def problem(self, answer: ClientResponse) -> ProblemType:
        return (await self.refused(answer)).problem

    def upload(self, client: Person, value: int = 1, /, **changes: Any) -> Upload:
        """An update that says `value` in every coordinate."""
        return self.upload_of(client, constant(self.task, value), **changes)

    def upload_of(self, client: Person, body: bytes, /, **changes: Any) -> Upload:
        task = self.task
        parts, at = [], 0
        for part in task.body:
            piece = body[at : at + part.size]
            parts.append(SectionEntry(part.name, part.size, hashlib.sha256(piece).digest()))
            at += part.size
        header = UpdateHeader(
            task_hash=task.hash,
            epoch=task.config.epoch,
            update_id=secrets.token_bytes(16),
            client=client.name,
            base_version=0,
            created=int(self.clock()),
            sections=tuple(parts),
        )
        header = replace(header, **changes)
        return Upload(header.update_id, SignedUpdate(client.key.sign(header), client.credential), body)

    async def put(self, client: Person, upload: Upload) -> ClientResponse:
        return await self.call(client, "PUT", paths.update_path(self.task.id, upload.id.hex()), data=upload.frame)

    async def fill(self, count: int = 3, value: int = 1, *, first: int = 0, **changes: Any) -> list[Upload]:
        """Updates of `count` new clients, all accepted."""
        uploads = []
        for i in range(first, first + count):
            client = self.person(f"client-{i}", "client")
            upload = self.upload(client, value, **changes)
            response = await self.put(client, upload)
            assert response.status == 201, await response.text()
            uploads.append(upload)
        return uploads

    async def work(self) -> int:
        """Let the worker do everything that is due; how many steps that took."""
        steps = 0
        while await self.worker.step():
            steps += 1
        return steps

    async def round(self, number: int) -> documents.RoundStatus:
        found = await self.get(self.holders[0], paths.round_path(self.task.id, number), documents.RoundStatus)
        assert isinstance(found, documents.RoundStatus)
        return found

    @property
    def voters(self) -> tuple[int, ...]:
        """The first holders, as many as must agree."""
        return tuple(range(self.task.committee.agreement))

    async def screen(self, number: int, holders: tuple[int, ...] | None = None, **excluded: str) -> None:
        """Screenings of some holders, and the worker's part. `excluded`: problems by the update's id in hex."""
        token, manifest = await self.manifest(number)
        out = tuple(Exclusion(bytes.fromhex(update), problem) for update, problem in excluded.items())
        for holder in self.voters if holders is None else holders:
            said = Screening(
                **self._about(token, holder), round=manifest.round, seen_opening=0, seen_version=0, excluded=out
            )
            response = await self.put_answer(holder, number, self.holders[holder].key.sign(said))
            assert response.status == 201, await response.text()
        await self.work()

    async def vote(self, number: int, holders: tuple[int, ...] | None = None) -> None:
        """Votes of some holders."""
        token, manifest = await self.manifest(number)
        for holder in self.voters if holders is None else holders:
            vote = Vote(**self._about(token, holder), opening=manifest.opening)
            response = await self.put_answer(holder, number, self.holders[holder].key.sign(vote))
            assert response.status in {200, 201}, await response.text()

    async def form(self, number: int) -> None:
        """What comes before the votes for a closed round: the committee screens its updates."""
        await self.work()
        await self.screen(number)

    async def certify(self, number: int) -> None:
        """What comes before the shares of a closed round: the committee screens its updates and votes."""
        await self.form(number)
        await self.vote(number)

    def _about(self, manifest: str, holder: int) -> dict[str, Any]:
        digest, epoch = payload_hash(manifest), self.task.config.epoch
        return {"task_hash": self.task.hash, "epoch": epoch, "manifest": digest, "holder": self.holders[holder].name}

    async def put_answer(self, holder: int, number: int, token: str) -> ClientResponse:
        person = self.holders[holder]
        return await self.call(person, "PUT", paths.answer_path(self.task.id, number, person.name), data=token.encode())

    async def manifest(self, number: int) -> tuple[str, Manifest]:
        opening = await self.get(self.holders[0], paths.opening_path(self.task.id, number), documents.Opening)
        return opening.manifest, read_unverified(opening.manifest, Manifest)

    async def share(
        self,
        holder: int,
        number: int,
        vectors: dict[int | tuple[int, int], bytes] | None = None,
        /,
        *,
        failed: tuple[FailedBucket, ...] = (),
        signer: SigningKey | None = None,
        **changes: Any,
    ) -> bytes:
        """A share's frame: zeros where `vectors` (by part, or by bucket and part) says nothing else, as if c0 were
        the plaintext already. Without the buckets that `failed` names."""
        token, manifest = await self.manifest(number)
        layout = self.task.scheme.share_layout(self.task.length)
        closed = {entry.bucket for entry in failed}
        buckets = sorted({entry.bucket for entry in manifest.updates} - closed)
        places = [(bucket, part) for bucket in buckets for part in self.task.sharing.subshares_of(holder)]
        given = vectors or {}
        bodies = [given.get(place, given.get(place[1], bytes(layout.size))) for place in places]
        share = Share(
            task_hash=self.task.hash,
            epoch=self.task.config.epoch,
            round=manifest.round,
            manifest=payload_hash(token),
            holder=self.holders[holder].name,
            vectors=tuple(
                ShareVector(*place, hashlib.sha256(body).digest()) for place, body in zip(places, bodies, strict=True)
            ),
            failed=failed,
        )
        signed = (signer or self.holders[holder].key).sign(replace(share, **changes))
        return frames.start(signed.encode()) + b"".join(bodies)

    async def put_share(self, holder: int, number: int, frame: bytes) -> ClientResponse:
        person = self.holders[holder]
        return await self.call(person, "PUT", paths.share_path(self.task.id, number, person.name), data=BytesIO(frame))

    async def open(self, number: int, holders: tuple[int, ...] = (0, 1, 2)) -> None:
        """Screenings, votes and honest shares of some holders, and the worker's part."""
        if (await self.round(number)).state == "closed":
            await self.form(number)
        await self.vote(number)
        for holder in holders:
            response = await self.put_share(holder, number, await self.share(holder, number))
            assert response.status in {200, 201}, await response.text()  # 200: it was there already
        await self.work()


def constant(task: Task, value: int) -> bytes:
    """An update's body whose c0 is the plaintext `value` in every slot; c1 does not matter here."""
    part = task.section("sum")
    assert part.layout is not None
    return _plaintext(value * UNIT, part.layout) + bytes(task.section("key").size)


def half_a_unit(task: Task) -> bytes:
    """A share's vector that moves every slot by a half: the opened sum is no integer then."""
    return _plaintext(UNIT // 2, task.scheme.share_layout(task.length))


def a_unit(task: Task) -> bytes:
    """A share's vector that moves every slot by one."""
    return _plaintext(UNIT, task.scheme.share_layout(task.length))


def _plaintext(coefficient: int, layout: ResidueLayout) -> bytes:
    """The NTT of a constant polynomial is that constant everywhere."""
    limbs = np.array([coefficient % q for q in layout.moduli], dtype=np.uint64)
    return pack(np.broadcast_to(limbs[None, :, None], layout.shape), layout)


def initial_model(config: TaskConfig, value: float = 0.0) -> bytes:
    return bytes(save({t.name: np.full(t.shape, value, dtype=np.float32) for t in config.model.tensors}))
