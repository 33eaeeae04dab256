"""One task with its parties, and what they do to one update without a server between them.

Everything goes through the seams of `he_client.schemes` and `he_holder.schemes`, so a new scheme is
measured without a line here.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np

from he_bench import profiles
from he_bench.updates import SPREAD
from he_client.quantise import UpdateQuantiser
from he_client.schemes import Encryptor
from he_holder.schemes import ShareMaker
from he_party.identity import Identity
from he_protocol import frames
from he_protocol.arithmetic import residues
from he_protocol.arithmetic.residues import Residues
from he_protocol.messages import SectionEntry, SignedUpdate, UpdateHeader, to_json
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.privacy.quantise import Floats
from he_protocol.task import Task
from he_testing.committee import MemoryCommittee
from he_testing.parties import Parties

HOLDERS, THRESHOLD, AGREEMENT = 4, 2, 3
TASK_NAME = "bench"
MAX_OPENINGS = 64
NO_PRIVACY = PrivacyPlan("none")
VALUE_RANGE = 6 * SPREAD


@dataclass(frozen=True)
class Update:
    """One encrypted update: its header, the signed head as it travels, and the body's sections by name."""

    header: UpdateHeader
    head: bytes
    # asyncio writes the repr of results now and then: of megabytes, that would be measured too.
    sections: Mapping[str, bytes] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(frames.start(self.head)) + sum(len(section) for section in self.sections.values())

    @property
    def digests(self) -> dict[str, bytes]:
        """SHA-256 of every section, by name."""
        return {section.name: section.sha256 for section in self.header.sections}


@dataclass
class World:
    """A task of `parameters` coordinates under a profile; at most `clients` updates enter a sum."""

    profile: str
    parameters: int
    clients: int
    parties: Parties = field(default_factory=lambda: Parties(HOLDERS))
    privacy: PrivacyPlan = NO_PRIVACY
    signing: float = 0.0
    """Seconds that digests and signatures took of the last `update`."""

    @cached_property
    def task(self) -> Task:
        zeros = {"parameters": np.broadcast_to(np.float32(0), (self.parameters,))}
        return self.parties.sign_task(
            {
                "name": TASK_NAME,
                "epoch": 1,
                "encryption": {"scheme": profiles.profile(self.profile).scheme, "profile": self.profile},
                "privacy": msgspec.to_builtins(self.privacy),
                "rounds": {
                    "min_clients": min(2, self.clients),
                    "max_clients": self.clients,
                    "collect_seconds": 3600,
                    "opening_seconds": 3600,
                    "staleness": MAX_OPENINGS,
                    "max_openings": MAX_OPENINGS,
                },
                "aggregation": {"value_range": VALUE_RANGE},
                "committee": {"threshold": THRESHOLD, "agreement": AGREEMENT},
            },
            zeros,
        )

    @cached_property
    def committee(self) -> MemoryCommittee:
        return MemoryCommittee(self.task, self.parties)

    def client(self, number: int) -> Identity:
        """Client `number`, enrolled when first asked for."""
        return self.parties.client(f"client-{number}")

    async def encryptor(self) -> Encryptor:
        """The task's encryptor, as a client makes it from what the committee has posted."""
        return await self.committee.encryptor(self.client(1).name, Path(self._folder.name))

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="he-bench-")

    async def update(self, encryptor: Encryptor, floats: Floats) -> Update:
        """All that a client does to a float32 update before it sends it, but in memory."""
        sections = {section.name: BytesIO() for section in self.task.body}
        digests = {section.name: hashlib.sha256() for section in self.task.body}

        self.signing = 0.0

        def write(name: str, data: bytes | memoryview) -> None:
            started = time.perf_counter()
            digests[name].update(data)
            self.signing += time.perf_counter() - started
            sections[name].write(data)

        update_id = new_update_id()
        await encryptor.encrypt(update_id, UpdateQuantiser(self.task, floats, None).block, write)
        started = time.perf_counter()
        header, head = self.sign(1, update_id, {name: digest.digest() for name, digest in digests.items()})
        self.signing += time.perf_counter() - started
        return Update(header, head, {name: file.getvalue() for name, file in sections.items()})

    def sign(self, client: int, update_id: bytes, digests: Mapping[str, bytes]) -> tuple[UpdateHeader, bytes]:
        """Header and head of an update of client `client`, whose sections have these SHA-256 digests."""
        identity = self.client(client)
        header = UpdateHeader(
            task_hash=self.task.hash,
            epoch=self.task.config.epoch,
            update_id=update_id,
            client=identity.name,
            base_version=0,
            created=int(time.time()),
            sections=tuple(
                SectionEntry(section.name, section.size, digests[section.name]) for section in self.task.body
            ),
        )
        return header, to_json(SignedUpdate(identity.key.sign(header), identity.credential))

    def share_maker(self, holder: int) -> ShareMaker:
        """What one holder opens sums with."""
        return self.committee.share_maker(holder)

    def release(self, holder: int, update: Update, times: int) -> dict[int, bytes]:
        """What one holder releases for a sum of `times` times one update: packed vectors by subshare."""
        total, body = self.share_maker(holder).begin(), update.sections[self.task.section("key").name]
        for _ in range(times):
            total.add(update.header, body)
        return dict(total.release(bytes(32), 0))

    def released(self, update: Update, times: int) -> list[Residues]:
        """One vector for every subshare, from a quorum of holders."""
        vectors: dict[int, bytes] = {}
        for holder in range(THRESHOLD):
            vectors |= self.release(holder, update, times)
        layout = self.task.scheme.share_layout(self.task.length)
        return [residues.unpack(vectors[section], layout) for section in range(self.task.sharing.subshares)]


def new_update_id() -> bytes:
    return secrets.token_bytes(16)
