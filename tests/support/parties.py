"""Parties for tests: an authority, clients, a server and a committee with its ceremony, if any, done in memory."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from msgspec.structs import replace

from he_authority.tasks import build_config
from he_client.quantise import Words, secret_words
from he_client.schemes.ckks import encrypt_slots, joint_context
from he_client.schemes.kahe import KaheEncryptor
from he_holder.ceremony.messages import Seeds
from he_protocol.config import ModelSpec, TaskConfig, TensorSpec
from he_protocol.identity.jws import SigningKey, token_hash
from he_protocol.messages import Manifest, ManifestEntry, SectionEntry, SignedUpdate, UpdateHeader
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.ckks import Ckks
from he_protocol.task import Task
from he_protocol.tensors import model_digest
from he_testing.clocks import FakeClock
from he_testing.committee import MemoryCommittee
from he_testing.parties import Authority, Parties
from he_testing.plans import changed, tables

NOW = 1_800_000_000.0

PLAN: dict[str, Any] = {
    "name": "test-task",
    "scheme": "ckks",
    "profile": "ckks-8192",
    "epoch": 1,
    "value_range": 4.0,
    "scale": 1024.0,
    "privacy": {"unit": "none"},
    "min_clients": 3,
    "max_clients": 8,
    "collect_seconds": 60,
    "opening_seconds": 60,
    "staleness": 2,
    "max_openings": 10,
    "threshold": 2,
}


def zeros_digest(tensors: Sequence[TensorSpec]) -> bytes:
    """`ModelSpec.initial_model` of a model that is all zeros."""
    return model_digest({spec.name: np.broadcast_to(np.float32(0), spec.shape) for spec in tensors})


@dataclass
class World(Parties):
    """One task with its parties; `plan` overrides fields of `PLAN`, or says `initial_model`.

    By default all holders must have voted.
    """

    holders: int = 3
    authority: Authority = field(default_factory=lambda: Authority(clock=FakeClock(NOW)), kw_only=True)
    plan: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[TensorSpec, ...] = (TensorSpec("w", (5, 2)),)

    @cached_property
    def task(self) -> Task:
        everybody = {"agreement": self.holders, "allow_no_collusion": self.plan.get("threshold") == 1}
        flat = PLAN | everybody | self.plan
        initial = flat.pop("initial_model", zeros_digest(self.tensors))
        config = build_config(
            tables(flat),
            ModelSpec(self.tensors, initial),
            self.server.credential,
            [holder.credential for holder in self.committee],
            self.authority.key.public,
        )
        return self.signed(config)

    def signed(self, config: TaskConfig, **changes: Any) -> Task:
        """A task as the authority signs it, with fields changed."""
        return Task.from_token(self.authority.key.sign(changed(config, **changes)), self.authority.key.public)

    @cached_property
    def dealt(self) -> tuple[list[Seeds], bytes]:
        """The ceremony in memory: every holder's seeds, and the packed joint key."""
        return MemoryCommittee(self.task, self).ceremony

    def encrypt(self, integers: Integers, folder: Path) -> dict[str, bytes]:
        """The body parts of one update, by TenSEAL under the joint key."""
        scheme = self.task.scheme
        assert isinstance(scheme, Ckks)
        path = folder / f"{self.task.id}.context"
        if not path.exists():
            key = self.dealt[1]
            path.write_bytes(joint_context(self.task, scheme, hashlib.sha256(key).digest(), key))
        slots = scheme.profile.slots
        pieces = [
            encrypt_slots(scheme.profile, str(path), integers[at : at + slots]) for at in range(0, len(integers), slots)
        ]
        return {"c0": b"".join(c0 for c0, _ in pieces), "c1": b"".join(c1 for _, c1 in pieces)}

    def encrypt_kahe(
        self, name: str, update_id: bytes, integers: Integers, *, threads: int = 1, words: Words = secret_words
    ) -> dict[str, bytes]:
        """The body parts of one update under scheme `kahe`; for tests that are not asynchronous."""
        body: dict[str, bytearray] = {part.name: bytearray() for part in self.task.body}
        sealer = KaheEncryptor(self.task, name, threads=threads, words=words)
        sealer._encrypt(update_id, lambda start, stop: integers[start:stop], lambda part, data: body[part].extend(data))
        return {part: bytes(data) for part, data in body.items()}

    def seeds(self, holder: int) -> dict[int, bytes]:
        """What the ceremony left with one holder, if there was one."""
        return dict(self.dealt[0][holder]) if self.task.scheme.ceremony else {}

    def update(self, name: str, body: dict[str, bytes] | None = None, **changes: Any) -> SignedUpdate:
        """A signed head; without a body the digests are of nothing in particular."""
        client = self.client(name)
        parts = tuple(
            SectionEntry(part.name, part.size, hashlib.sha256(body[part.name] if body else part.name.encode()).digest())
            for part in self.task.body
        )
        header = UpdateHeader(self.task.hash, self.task.config.epoch, secrets.token_bytes(16), name, 0, int(NOW), parts)
        return SignedUpdate(client.key.sign(replace(header, **changes)), client.credential)

    def manifest(
        self,
        updates: list[SignedUpdate],
        *,
        number: int = 1,
        signer: SigningKey | None = None,
        buckets: Mapping[str, int] = MappingProxyType({}),
        **changes: Any,
    ) -> tuple[str, tuple[SignedUpdate, ...]]:
        """A signed manifest of updates, and the updates in its order. `buckets`: by client, 0 for the others."""
        from he_protocol.identity.jws import read_unverified

        headers = {id(update): read_unverified(update.header, UpdateHeader) for update in updates}
        ordered = sorted(updates, key=lambda update: headers[id(update)].update_id)
        entries = tuple(
            ManifestEntry(h.update_id, h.client, token_hash(u.header), buckets.get(h.client, 0))
            for u, h in ((u, headers[id(u)]) for u in ordered)
        )
        manifest = Manifest(self.task.hash, self.task.config.epoch, number, number, int(NOW), 0, entries)
        return (signer or self.server.key).sign(replace(manifest, **changes)), tuple(ordered)


def random_integers(length: int, seed: int, bound: int = 1 << 12) -> Integers:
    return np.random.default_rng(seed).integers(-bound, bound, length)
