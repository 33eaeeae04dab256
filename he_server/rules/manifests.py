"""Which updates go into a round's manifest, and in which buckets: pure functions, no clock, no database.

Key holders judge the same again for themselves. What the server can see itself it does not take on a holder's word;
what only holders can see (an envelope that does not open) counts when more of them say so than may lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from he_protocol.documents import ExcludedUpdate, Failure
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import check_credential, issued_by
from he_protocol.identity.jws import public_from_jwk, read_unverified
from he_protocol.identity.revocation import Revocations, check_key
from he_protocol.messages import Manifest, ManifestEntry, Screening, UpdateHeader
from he_protocol.problems import EXCLUDED_UPDATE, PROBLEMS, STALE_UPDATE, TOO_FEW_CLIENTS
from he_protocol.task import Task
from he_server.rules.records import UpdateRecord
from he_server.rules.rounds import merge_buckets
from he_server.rules.updates import check_base_version


@dataclass(frozen=True)
class Circumstances:
    """What a manifest is formed under: the moment (Unix seconds), the newest model version, what is revoked."""

    formed: int
    version: int
    revocations: Revocations = field(default_factory=Revocations)


def check_update(task: Task, authority: bytes, update: UpdateRecord, now: Circumstances) -> None:
    """What key holders would leave an update out for, as far as the server can see it.

    Raises `expired-credential`, `revoked-key` or `stale-update`.
    """
    check_credential(update.credential, authority, "client", now.formed)
    key = public_from_jwk(issued_by(authority, update.credential).cnf.jwk.x)
    check_key(now.revocations, update.client, key)
    check_base_version(update.base_version, now.version, task.config.rounds.staleness)
    created = read_unverified(update.header, UpdateHeader).created
    if created < (oldest := now.formed - task.config.rounds.update_lifetime):
        raise ProblemError(STALE_UPDATE, "the update is too old", expected=f"created after {oldest}", got=created)


def faults(task: Task, authority: bytes, updates: Iterable[UpdateRecord], now: Circumstances) -> dict[str, Failure]:
    """The updates (ids in hex) that must be left out, and why."""
    found = {}
    for update in updates:
        try:
            check_update(task, authority, update, now)
        except ProblemError as refusal:
            found[update.update_id] = Failure(refusal.problem.urn, refusal.detail)
    return found


def excluded_by_holders(task: Task, screenings: Sequence[Screening]) -> dict[str, Failure]:
    """The updates (ids in hex) that enough holders have found of no use."""
    said: dict[str, dict[str, str]] = {}
    for screening in screenings:
        for one in screening.excluded:
            said.setdefault(one.update_id.hex(), {})[screening.holder] = one.problem
    needed = task.committee.needed_to_exclude
    found = {}
    for update, by_holder in said.items():
        if len(by_holder) >= needed:
            slug, _ = Counter(by_holder.values()).most_common(1)[0]
            problem = PROBLEMS.get(slug, EXCLUDED_UPDATE)
            found[update] = Failure(problem.urn, f"{problem.title}, say {', '.join(sorted(by_holder))}")
    return found


@dataclass(frozen=True)
class Plan:
    """How a round is opened: its buckets as they were folded (old number: new number), and what is left out."""

    buckets: Mapping[int, int]
    excluded: Mapping[str, Failure]

    @property
    def count(self) -> int:
        """Buckets that are opened."""
        return len(set(self.buckets.values()))

    @property
    def documents(self) -> tuple[ExcludedUpdate, ...]:
        return tuple(ExcludedUpdate(update, failure) for update, failure in sorted(self.excluded.items()))

    def entries(self, updates: Sequence[UpdateRecord]) -> tuple[ManifestEntry, ...]:
        """The manifest's, in the order of the updates."""
        return tuple(
            ManifestEntry(bytes.fromhex(u.update_id), u.client, bytes.fromhex(u.header_hash), self.buckets[u.bucket])
            for u in updates
            if u.update_id not in self.excluded
        )


def plan_round(
    task: Task, updates: Sequence[UpdateRecord], excluded: Mapping[str, Failure], lost: frozenset[str] = frozenset()
) -> Plan:
    """Buckets of at least `min_clients` from what is not excluded.

    `lost`: updates whose bytes are gone. One of those that must be left out cannot be taken out of its bucket's sum, so
    the others of that bucket go with it. Raises `too-few-clients` when no bucket is large enough.
    """
    spoilt = {u.bucket for u in updates if u.update_id in excluded and u.update_id in lost}
    why = Failure(EXCLUDED_UPDATE.urn, "it was added up with an update that had to be left out; send it again")
    out = dict(excluded) | {u.update_id: why for u in updates if u.bucket in spoilt and u.update_id not in excluded}
    sizes = Counter(u.bucket for u in updates if u.update_id not in out)
    kept = sorted(sizes)
    if (left := sum(sizes.values())) < task.config.rounds.min_clients:
        first = "; ".join(f"{failure.detail}" for failure in list(out.values())[:3])
        raise ProblemError(
            TOO_FEW_CLIENTS,
            f"{len(out)} updates had to be left out ({first})",
            expected=f"at least {task.config.rounds.min_clients}",
            got=left,
        )
    count = merge_buckets([sizes[bucket] for bucket in kept], task.config.rounds.min_clients)
    return Plan({bucket: number % count for number, bucket in enumerate(kept)}, out)


def form(
    task: Task, number: int, opening: int, now: Circumstances, plan: Plan, updates: Sequence[UpdateRecord]
) -> Manifest:
    """A round's manifest; `updates` are sorted by id."""
    return Manifest(
        task_hash=task.hash,
        epoch=task.config.epoch,
        round=number,
        opening=opening,
        formed=now.formed,
        model_version=now.version,
        updates=plan.entries(updates),
    )
