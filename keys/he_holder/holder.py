"""One key holder: what it holds, and what it does with one task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from he_holder.hpke_key import HpkeKey
from he_holder.keyring import Keyring
from he_holder.ledger import Ledger
from he_holder.rules import check_alive
from he_holder.schemes import ShareMaker, make_share_maker
from he_party.identity import Identity
from he_party.keyfile import read_private
from he_protocol.committee import describe
from he_protocol.errors import ProblemError
from he_protocol.messages import Count, Digest, Key32, Message
from he_protocol.privacy.plan import check_budget
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_KEY_FILE,
    KEYS_NOT_READY,
    TOO_FEW_CLIENTS,
    WRONG_EPOCH,
)
from he_protocol.task import Task


class SubshareSeed(Message, frozen=True):
    subshare: Count
    seed: Key32

    def __repr__(self) -> str:
        return f"SubshareSeed(subshare={self.subshare})"


class EpochSecret(Message, frozen=True):
    """What a ceremony leaves with one holder: the seeds of its subshares."""

    task_hash: Digest
    epoch: Count
    seeds: tuple[SubshareSeed, ...]

    def __repr__(self) -> str:
        return f"EpochSecret(task_hash={self.task_hash.hex()}, epoch={self.epoch})"


@dataclass
class KeyHolder:
    """A holder's identity, ledger and secrets. `min_clients_floor` is its own minimum of clients per sum.

    least_f: it joins no committee that keeps its promises against fewer colluding holders; see `Committee.colluders`.
    require_revocations: it opens nothing before it has seen a revocation list of the authority.
    """

    identity: Identity
    ledger: Ledger
    directory: Path
    min_clients_floor: int = 2
    least_f: int = 1
    passphrase: str = field(default="", repr=False)
    clock: Callable[[], float] = time.time
    require_revocations: bool = False
    _share_makers: dict[bytes, ShareMaker] = field(default_factory=dict, repr=False)

    def index(self, task: Task) -> int:
        """This holder's number in a task's committee; refuses a task that lists another key for it."""
        index = task.holder_index(self.identity.name)
        if index is None:
            raise ProblemError(BAD_COMMITTEE, f"{self.identity.name!r} is not a holder of task {task.config.name!r}")
        if task.config.committee.holders[index].key != self.identity.key.public:
            raise ProblemError(BAD_COMMITTEE, f"the task lists another signing key for {self.identity.name!r}")
        return index

    @property
    def keyring(self) -> Keyring:
        return Keyring.of(self.directory, self.passphrase)

    def hpke(self, task: Task) -> HpkeKey:
        """The HPKE key that a task lists for us. Raises `bad-committee` or `ledger-mismatch`."""
        return self.keyring.find(task.config.committee.holders[self.index(task)].hpke, self.ledger.name)

    async def join(self, task: Task, server_url: str) -> None:
        """Agree to open this task's sums, once its promise is checked.

        Raises `epoch-destroyed`, `bad-committee` when we are not in it, or fewer colluders than `least_f` would break
        it, `ledger-mismatch`, `too-few-clients` when the task's minimum is below our floor, or `budget-exhausted` when
        its openings would cost more epsilon than it promises.
        """
        check_alive(task, task.hash in await self.ledger.destroyed())
        await asyncio.to_thread(self.hpke, task)
        if task.committee.colluders < self.least_f:
            raise ProblemError(
                BAD_COMMITTEE,
                f"task {task.config.name!r}: {describe(task.committee)}",
                expected=f"f at least {self.least_f} (least_f)",
                got=task.committee.colluders,
            )
        check_reachable(task, self.min_clients_floor)
        if task.config.rounds.min_clients < self.min_clients_floor:
            raise ProblemError(
                TOO_FEW_CLIENTS,
                f"task {task.config.name!r} would open sums below our floor",
                expected=f"min_clients at least {self.min_clients_floor}",
                got=task.config.rounds.min_clients,
            )
        await asyncio.to_thread(check_promise, task)
        await self.ledger.join(task, server_url, self.clock())

    def secret_path(self, task: Task, kind: str) -> Path:
        return self.directory / "epochs" / f"{task.id}-{task.config.epoch}.{kind}"

    def share_maker(self, task: Task) -> ShareMaker:
        """The task's share maker with this holder's secrets, loaded once.

        Raises `keys-not-ready` before the ceremony has ended.
        """
        if task.hash not in self._share_makers:
            self._share_makers[task.hash] = make_share_maker(task, self.index(task), self.hpke(task), self._seeds(task))
        return self._share_makers[task.hash]

    def forget(self, task: Task) -> None:
        """Drop a task's secrets from memory."""
        self._share_makers.pop(task.hash, None)

    def _seeds(self, task: Task) -> dict[int, bytes]:
        if not task.scheme.ceremony:
            return {}
        try:
            secret = read_private(self.secret_path(task, "key"), EpochSecret, self.passphrase)
        except ProblemError as refusal:
            if refusal.problem is BAD_KEY_FILE and not self.secret_path(task, "key").exists():
                raise ProblemError(KEYS_NOT_READY, f"run the key ceremony of {task.config.name!r} first") from None
            raise
        if (secret.task_hash, secret.epoch) != (task.hash, task.config.epoch):
            raise ProblemError(WRONG_EPOCH, "the secret is of another task or epoch", expected=task.id, got=secret)
        return {entry.subshare: entry.seed for entry in secret.seeds}


def check_reachable(task: Task, min_clients_floor: int) -> None:
    """A bucket of the task can have as many clients as we ask for: else every round would wait for us for ever.

    Raises `too-few-clients`.
    """
    rounds = task.config.rounds
    if (most := rounds.max_clients // rounds.buckets) < min_clients_floor:
        raise ProblemError(
            TOO_FEW_CLIENTS,
            f"task {task.config.name!r} can never reach our floor (min_clients_floor)",
            expected=f"sums of at least {min_clients_floor} clients",
            got=f"at most {most}: max_clients {rounds.max_clients}, buckets {rounds.buckets}",
        )


def check_promise(task: Task) -> None:
    """The task's whole budget of openings stays within the epsilon that it promises. Raises `budget-exhausted`."""
    check_budget(task.config.privacy, task.config.rounds.max_openings)
