"""One key holder: what it holds, and what it does with one task."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from he_client.identity import Identity
from he_client.transport import Transport
from he_protocol import api
from he_protocol.keyfile import read_private
from he_protocol.messages import Count, Digest, Key32, Manifest, Message, PartDigest, Share, UpdateHeader
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
from he_protocol.signing import read_unverified
from he_protocol.task import Task
from keys.checks import Request
from keys.hpke_key import HpkeKey
from keys.ledger import Ledger
from keys.schemes import KeySum, Opener, make_opener

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
    """A holder's identity, HPKE key, ledger and secrets. `floor` is its own minimum of clients per sum."""

    identity: Identity
    hpke: HpkeKey
    ledger: Ledger
    directory: Path
    floor: int = 2
    passphrase: str = field(default="", repr=False)
    clock: Callable[[], float] = time.time
    _openers: dict[bytes, Opener] = field(default_factory=dict, repr=False)

    def index(self, task: Task) -> int:
        """This holder's number in a task's committee; refuses a task that lists other keys for it."""
        index = task.holder_index(self.identity.name)
        if index is None:
            raise Refusal(BAD_COMMITTEE, f"{self.identity.name!r} is not a holder of task {task.config.name!r}")
        entry = task.config.holders[index]
        if entry.key != self.identity.key.public or entry.hpke != self.hpke.public:
            raise Refusal(BAD_COMMITTEE, f"the task lists other keys for {self.identity.name!r}")
        return index

    async def join(self, task: Task, server_url: str) -> None:
        """Agree to open this task's sums, once its promise is checked.

        Raises `bad-committee`, `too-few-clients` when the task's minimum is below our floor, or
        `budget-exhausted` when its openings would cost more epsilon than it promises.
        """
        self.index(task)
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
            self._openers[task.hash] = make_opener(task, self.index(task), self.hpke, self._seeds(task))
        return self._openers[task.hash]

    async def open_round(self, task: Task, number: int, transport: Transport) -> None:
        """Judge a round's manifest, record the decision, and release this holder's share.

        Raises the refusal, which is in the ledger then; not so a failure of the service, or `wrong-state`: a
        quorum of the others was faster.
        """
        opener = await asyncio.to_thread(self.opener, task)
        path, server = api.opening_path(task.id, number), task.config.server.name
        asked = await transport.document("GET", path, api.Opening, audience=server)
        try:
            await self._answer(task, number, opener, asked, transport)
        except Refusal as refusal:
            if refusal.problem.status < SERVICE_FAILURE and refusal.problem is not WRONG_STATE:
                await self.ledger.refused(task, number, refusal, self.clock(), asked.manifest)
            raise

    async def _answer(self, task: Task, number: int, opener: Opener, asked: api.Opening, transport: Transport) -> None:
        server = task.config.server.name
        if (named := read_unverified(asked.manifest, Manifest).round) != number:
            raise Refusal(MANIFEST_MISMATCH, "the manifest is of another round", expected=number, got=named)
        request = await self.ledger.decide(
            task, self.identity.authority, asked.manifest, asked.updates, floor=self.floor, now=self.clock()
        )
        total, part = opener.begin(), task.part("key")
        bodies = transport.records(
            api.key_parts_path(task.id, number), audience=server, size=part.size, count=len(request.headers)
        )
        async with aclosing(bodies):
            for header in request.headers:
                await asyncio.to_thread(add_checked, total, header, part.name, await anext(bodies))
            await anext(bodies, None)  # lets the stream check that nothing follows
        share, vectors = await asyncio.to_thread(release, request, self.identity.name, total)
        head = self.identity.key.sign(share).encode()
        await transport.put_frame(api.share_path(task.id, number, self.identity.name), head, vectors, server)

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


def add_checked(total: KeySum, header: UpdateHeader, name: str, body: bytes) -> None:
    """Add one update's key part to the sum, once it is what the client signed."""
    signed = next(part.sha256 for part in header.parts if part.name == name)
    if hashlib.sha256(body).digest() != signed:
        raise Refusal(DIGEST_MISMATCH, f"part {name} of update {header.update_id.hex()}", expected=signed.hex())
    total.add(header, body)


def release(request: Request, holder: str, total: KeySum) -> tuple[Share, list[bytes]]:
    """The share for an accepted manifest, and its part vectors."""
    numbers, vectors = [], []
    for number, packed in total.release(request.manifest_hash):
        numbers.append(PartDigest(number, hashlib.sha256(packed).digest()))
        vectors.append(packed)
    manifest = request.manifest
    share = Share(manifest.task_hash, manifest.epoch, manifest.round, request.manifest_hash, holder, tuple(numbers))
    return share, vectors
