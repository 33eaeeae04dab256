"""One key holder: what it holds, and what it does with one task."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from he_client.identity import Identity
from he_client.transport import Transport
from he_protocol import api, limits
from he_protocol.keyfile import read_private
from he_protocol.messages import (
    Count,
    Digest,
    FailedBucket,
    Key32,
    Manifest,
    Message,
    Share,
    ShareVector,
    UpdateHeader,
)
from he_protocol.privacy import epsilon
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_KEY_FILE,
    BUDGET_EXHAUSTED,
    DIGEST_MISMATCH,
    KEYS_NOT_READY,
    MANIFEST_MISMATCH,
    TOO_FEW_CLIENTS,
    WRONG_EPOCH,
    WRONG_STATE,
    Refusal,
)
from he_protocol.revocation import Revocations
from he_protocol.signing import read_unverified
from he_protocol.task import Task
from keys.checks import Request, check_alive
from keys.hpke_key import HpkeKey
from keys.keyring import Keyring
from keys.ledger import Ledger
from keys.schemes import Opener, make_opener

SERVICE_FAILURE = 500
"""Problems from this status on say that somebody could not answer, not that something is wrong."""


class PartSeed(Message, frozen=True):
    part: Count
    seed: Key32

    def __repr__(self) -> str:
        return f"PartSeed(part={self.part})"


class EpochSecret(Message, frozen=True):
    """What a ceremony leaves with one holder: the seeds of its parts."""

    task_hash: Digest
    epoch: Count
    seeds: tuple[PartSeed, ...]

    def __repr__(self) -> str:
        return f"EpochSecret(task_hash={self.task_hash.hex()}, epoch={self.epoch})"


@dataclass
class KeyHolder:
    """A holder's identity, ledger and secrets. `floor` is its own minimum of clients per sum.

    require_revocations: it opens nothing before it has seen a revocation list of the authority.
    """

    identity: Identity
    ledger: Ledger
    directory: Path
    floor: int = 2
    passphrase: str = field(default="", repr=False)
    clock: Callable[[], float] = time.time
    require_revocations: bool = False
    _openers: dict[bytes, Opener] = field(default_factory=dict, repr=False)

    def index(self, task: Task) -> int:
        """This holder's number in a task's committee; refuses a task that lists another key for it."""
        index = task.holder_index(self.identity.name)
        if index is None:
            raise Refusal(BAD_COMMITTEE, f"{self.identity.name!r} is not a holder of task {task.config.name!r}")
        if task.config.holders[index].key != self.identity.key.public:
            raise Refusal(BAD_COMMITTEE, f"the task lists another signing key for {self.identity.name!r}")
        return index

    @property
    def keyring(self) -> Keyring:
        return Keyring.of(self.directory, self.passphrase)

    def hpke(self, task: Task) -> HpkeKey:
        """The HPKE key that a task lists for us. Raises `bad-committee` or `ledger-mismatch`."""
        return self.keyring.find(task.config.holders[self.index(task)].hpke, self.ledger.name)

    async def join(self, task: Task, server_url: str) -> None:
        """Agree to open this task's sums, once its promise is checked.

        Raises `epoch-destroyed`, `bad-committee`, `ledger-mismatch`, `too-few-clients` when the task's minimum is
        below our floor, or `budget-exhausted` when its openings would cost more epsilon than it promises.
        """
        check_alive(task, task.hash in await self.ledger.destroyed())
        await asyncio.to_thread(self.hpke, task)
        if task.config.min_clients < self.floor:
            raise Refusal(
                TOO_FEW_CLIENTS,
                f"task {task.config.name!r} would open sums below our floor",
                expected=f"min_clients at least {self.floor}",
                got=task.config.min_clients,
            )
        await asyncio.to_thread(check_promise, task)
        await self.ledger.join(task, server_url, self.clock())

    def secret_path(self, task: Task, kind: str) -> Path:
        return self.directory / "epochs" / f"{task.id}-{task.config.epoch}.{kind}"

    def opener(self, task: Task) -> Opener:
        """The task's opener with this holder's secrets, loaded once.

        Raises `keys-not-ready` before the ceremony has ended.
        """
        if task.hash not in self._openers:
            self._openers[task.hash] = make_opener(task, self.index(task), self.hpke(task), self._seeds(task))
        return self._openers[task.hash]

    def forget(self, task: Task) -> None:
        """Drop a task's secrets from memory."""
        self._openers.pop(task.hash, None)

    async def open_round(self, task: Task, number: int, transport: Transport) -> Share:
        """Judge a round's manifest, record the decision, and release this holder's share.

        Raises the refusal, which is in the ledger then; not so a failure of the service, or `wrong-state`: a
        quorum of the others was faster.
        """
        check_alive(task, task.hash in await self.ledger.destroyed())
        opener = await asyncio.to_thread(self.opener, task)
        path, server = api.opening_path(task.id, number), task.config.server.name
        asked = await transport.document("GET", path, api.Opening, audience=server, limit=limits.opening(task))
        try:
            share = await self._answer(task, number, opener, asked, transport)
        except Refusal as refusal:
            if refusal.problem is WRONG_STATE:
                await self.ledger.settled(task, number, self.clock())
            elif refusal.problem.status < SERVICE_FAILURE:
                await self.ledger.refused(task, number, refusal, self.clock(), asked.manifest)
            raise
        await self.ledger.settled(task, number, self.clock())
        return share

    async def _answer(self, task: Task, number: int, opener: Opener, asked: api.Opening, transport: Transport) -> Share:
        server = task.config.server.name
        if (named := read_unverified(asked.manifest, Manifest).round) != number:
            raise Refusal(MANIFEST_MISMATCH, "the manifest is of another round", expected=number, got=named)
        authority = self.identity.authority
        if asked.revocations:
            await self.ledger.learn_revocations(await asyncio.to_thread(Revocations.read, asked.revocations, authority))
        request = await self.ledger.decide(
            task,
            authority,
            asked.manifest,
            asked.updates,
            floor=self.floor,
            now=self.clock(),
            require_revocations=self.require_revocations,
        )
        sums, part = BucketSums(opener, request.manifest, request.revoked), task.part("key")
        bodies = transport.records(
            api.key_parts_path(task.id, number), audience=server, size=part.size, count=len(request.headers)
        )
        async with aclosing(bodies):
            for header in request.headers:
                await asyncio.to_thread(add_checked, sums, header, part.name, await anext(bodies))
            await anext(bodies, None)  # lets the stream check that nothing follows
        share, vectors = await asyncio.to_thread(release, request, self.identity.name, sums)
        head = self.identity.key.sign(share).encode()
        await transport.put_frame(api.share_path(task.id, number, self.identity.name), head, vectors, server)
        return share

    def _seeds(self, task: Task) -> dict[int, bytes]:
        if not task.scheme.ceremony:
            return {}
        try:
            secret = read_private(self.secret_path(task, "key"), EpochSecret, self.passphrase)
        except Refusal as refusal:
            if refusal.problem is BAD_KEY_FILE and not self.secret_path(task, "key").exists():
                raise Refusal(KEYS_NOT_READY, f"run the key ceremony of {task.config.name!r} first") from None
            raise
        if (secret.task_hash, secret.epoch) != (task.hash, task.config.epoch):
            raise Refusal(WRONG_EPOCH, "the secret is of another task or epoch", expected=task.id, got=secret)
        return {entry.part: entry.seed for entry in secret.seeds}


def check_promise(task: Task) -> None:
    """The task's whole budget of openings stays within the epsilon that it promises."""
    plan, openings = task.config.privacy, task.config.max_openings
    if plan.noisy and (cost := epsilon(plan, openings)) > plan.epsilon_budget:
        raise Refusal(
            BUDGET_EXHAUSTED,
            f"{openings} openings cost more than the task promises",
            expected=f"epsilon at most {plan.epsilon_budget}",
            got=f"{cost:.4f}",
        )


class BucketSums:
    """The key-layer sums of one manifest, a bucket each, and the buckets that an update of theirs has spoilt.

    All of them are in memory: updates come in the manifest's order, which is not that of the buckets.
    """

    def __init__(
        self, opener: Opener, manifest: Manifest, closed: Mapping[int, FailedBucket] = MappingProxyType({})
    ) -> None:
        """`closed`: buckets that stay closed whatever their updates are worth."""
        self._bucket = {entry.update_id: entry.bucket for entry in manifest.updates}
        self._failed = dict(closed)
        self._sums = {bucket: opener.begin() for bucket in sorted(set(self._bucket.values()) - self._failed.keys())}

    def add(self, header: UpdateHeader, body: bytes) -> None:
        """Add one update to its bucket's sum. What a client signed but no one can use spoils that bucket only."""
        bucket = self._bucket[header.update_id]
        if bucket in self._failed:
            return
        try:
            self._sums[bucket].add(header, body)
        except Refusal as refusal:
            self._failed[bucket] = FailedBucket(bucket, header.update_id, refusal.problem.slug)
            del self._sums[bucket]

    @property
    def failed(self) -> tuple[FailedBucket, ...]:
        return tuple(failed for _, failed in sorted(self._failed.items()))

    def release(self, manifest_hash: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Bucket, part and packed vector of everything that this holder knows, bucket by bucket."""
        for bucket, total in self._sums.items():
            for part, packed in total.release(manifest_hash, bucket):
                yield bucket, part, packed


def add_checked(sums: BucketSums, header: UpdateHeader, name: str, body: bytes) -> None:
    """Add one update's key part to its bucket's sum, once it is what the client signed.

    Raises `digest-mismatch` when it is not: that is the server's doing, and refuses the round.
    """
    signed = next(part.sha256 for part in header.parts if part.name == name)
    if hashlib.sha256(body).digest() != signed:
        raise Refusal(DIGEST_MISMATCH, f"part {name} of update {header.update_id.hex()}", expected=signed.hex())
    sums.add(header, body)


def release(request: Request, holder: str, sums: BucketSums) -> tuple[Share, list[bytes]]:
    """The share for an accepted manifest, and its part vectors."""
    entries, vectors = [], []
    for bucket, part, packed in sums.release(request.manifest_hash):
        entries.append(ShareVector(bucket, part, hashlib.sha256(packed).digest()))
        vectors.append(packed)
    manifest = request.manifest
    share = Share(
        task_hash=manifest.task_hash,
        epoch=manifest.epoch,
        round=manifest.round,
        manifest=request.manifest_hash,
        holder=holder,
        parts=tuple(entries),
        failed=sums.failed,
    )
    return share, vectors
