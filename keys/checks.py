"""What a key holder checks before it releases anything (section 8 of the design).

Each rule is a pure function that raises a `Refusal`; `RULES` is all of them in order. Nothing that
the server says is believed but what clients and the authority signed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from he_protocol.identity import CLOCK_SKEW_SECONDS, check_credential
from he_protocol.messages import FailedBucket, Manifest, SignedUpdate, UpdateHeader
from he_protocol.problems import (
    BUDGET_EXHAUSTED,
    CLOCK_SKEW,
    DUPLICATE_CLIENT,
    DUPLICATE_UPDATE,
    EPOCH_DESTROYED,
    MANIFEST_FORK,
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    OLD_REVOCATIONS,
    REVOKED_KEY,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    TOO_MANY_CLIENTS,
    UPDATE_OPENED_BEFORE,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_TASK,
    Refusal,
)
from he_protocol.revocation import Revocations, check_fresh, check_key
from he_protocol.signing import payload_hash, read_unverified, token_hash, verify
from he_protocol.task import Task


@dataclass(frozen=True)
class History:
    """What the holder's ledger knows that bears on one manifest.

    manifest_hash: of the manifest accepted for this round, or None. opened_before: those of the
    manifest's update ids that *other* rounds opened. openings: accepted ones of other rounds. destroyed: this holder
    has destroyed its keys of the epoch. revocations: the newest list that it has seen.
    """

    manifest_hash: bytes | None
    opened_before: frozenset[bytes]
    openings: int
    model_version: int
    destroyed: bool = False
    revocations: Revocations = field(default_factory=Revocations)


@dataclass(frozen=True)
class Request:
    """One manifest that a server asks to open, and all that is needed to judge it. `now` in Unix seconds.

    require_revocations: this holder opens nothing before it has seen a revocation list.
    """

    task: Task
    authority: bytes
    manifest_token: str
    updates: tuple[SignedUpdate, ...]
    history: History
    floor: int
    now: float
    require_revocations: bool = False

    @cached_property
    def manifest(self) -> Manifest:
        """Strictly parsed; `manifest_signed` checks the signature."""
        return read_unverified(self.manifest_token, Manifest)

    @cached_property
    def manifest_hash(self) -> bytes:
        return payload_hash(self.manifest_token)

    @cached_property
    def headers(self) -> tuple[UpdateHeader, ...]:
        """Strictly parsed; `headers_signed` checks the signatures."""
        return tuple(read_unverified(update.header, UpdateHeader) for update in self.updates)

    @cached_property
    def revoked(self) -> dict[int, FailedBucket]:
        """The buckets that stay closed because a client of theirs was revoked, with the first such update."""
        known = self.history.revocations
        found: dict[int, FailedBucket] = {}
        for entry, update in zip(self.manifest.updates, self.updates, strict=True):
            if entry.bucket not in found and known.covers_credential(update.credential):
                found[entry.bucket] = FailedBucket(entry.bucket, entry.update_id, REVOKED_KEY.slug)
        return found


Rule = Callable[[Request], None]


def manifest_signed(request: Request) -> None:
    """By the task's server."""
    verify(request.manifest_token, Manifest, request.task.config.server.key)


def manifest_bound(request: Request) -> None:
    """To this task and epoch."""
    _bound("the manifest", request.manifest, request.task)


def round_not_forked(request: Request) -> None:
    """One manifest per round, for ever: the same again is a retry, another is a fork."""
    before = request.history.manifest_hash
    if before is not None and before != request.manifest_hash:
        raise Refusal(
            MANIFEST_FORK,
            f"round {request.manifest.round} was opened with another manifest",
            expected=before.hex(),
            got=request.manifest_hash.hex(),
        )


def headers_complete(request: Request) -> None:
    """Exactly the headers that the manifest lists: same order, digest, update id and client."""
    listed = [(entry.header, entry.update_id, entry.client) for entry in request.manifest.updates]
    given = [
        (token_hash(update.header), header.update_id, header.client)
        for update, header in zip(request.updates, request.headers, strict=True)
    ]
    if listed != given:
        raise Refusal(MANIFEST_MISMATCH, "digest, id or client differ", expected=len(listed), got=len(given))


def headers_signed(request: Request) -> None:
    """Every header by the client that it names, under a client credential of our authority valid now."""
    for update, header in zip(request.updates, request.headers, strict=True):
        party = check_credential(update.credential, request.authority, "client", request.now)
        verify(update.header, UpdateHeader, party.public)
        if party.name != header.client:
            raise Refusal(NOT_ADDRESSED, "a header speaks for another client", expected=party.name, got=header.client)


def headers_bound(request: Request) -> None:
    """To this task and epoch, and not made in the future."""
    for header in request.headers:
        _bound(f"the header of update {header.update_id.hex()}", header, request.task)
        if header.created > request.now + CLOCK_SKEW_SECONDS:
            raise Refusal(CLOCK_SKEW, f"update {header.update_id.hex()}", expected=int(request.now), got=header.created)


def clients_distinct(request: Request) -> None:
    """One update per client: two of one client would halve the others' cover."""
    seen: set[str] = set()
    for header in request.headers:
        if header.client in seen:
            raise Refusal(DUPLICATE_CLIENT, f"{header.client!r} has two updates in round {request.manifest.round}")
        seen.add(header.client)


def updates_distinct(request: Request) -> None:
    """No update twice: a client could read itself as its own noise."""
    ids = [header.update_id for header in request.headers]
    if len(set(ids)) != len(ids):
        raise Refusal(DUPLICATE_UPDATE, f"an update id stands twice in round {request.manifest.round}")


def revocations_fresh(request: Request) -> None:
    """A server that holds back the authority's next list gains the rest of this one's time, and no more."""
    known = request.history.revocations
    if request.require_revocations and not known.number:
        raise Refusal(OLD_REVOCATIONS, "no revocation list is known", expected="one", got="none")
    check_fresh(known, request.now)


def server_not_revoked(request: Request) -> None:
    """Whoever signs with the server's key may be somebody who has stolen it."""
    server = request.task.config.server
    check_key(request.history.revocations, server.name, server.key)


def clients_not_revoked(request: Request) -> None:
    """Some bucket is without a revoked client: those with one stay closed, and nothing else is no opening's worth.

    When a header was signed does not matter: a stolen key signs any date.
    """
    buckets = {entry.bucket for entry in request.manifest.updates}
    if buckets and buckets == request.revoked.keys():
        update = request.revoked[min(buckets)].update_id.hex()
        raise Refusal(
            REVOKED_KEY, f"update {update}: no bucket without a revoked client", got=f"{len(buckets)} buckets"
        )


def buckets_numbered(request: Request) -> None:
    """From 0 on without a gap, and no more than the task has: every bucket is one more sum that is seen."""
    found, most = sorted({entry.bucket for entry in request.manifest.updates}), request.task.config.buckets
    if found != list(range(len(found))) or not 1 <= len(found) <= most:
        raise Refusal(
            MANIFEST_MISMATCH,
            "the buckets are not numbered from 0 on",
            expected=f"1 to {most} buckets",
            got=found[: most + 1],
        )


def buckets_large_enough(request: Request) -> None:
    """Every bucket alone has the task's minimum and this holder's own floor: each is a sum that is seen."""
    needed = max(request.task.config.min_clients, request.floor)
    for bucket, count in sorted(Counter(entry.bucket for entry in request.manifest.updates).items()):
        if count < needed:
            where = f"bucket {bucket} of round {request.manifest.round}"
            raise Refusal(TOO_FEW_CLIENTS, where, expected=f"at least {needed}", got=count)


def sums_fit(request: Request) -> None:
    """No more clients than sums can hold without wrapping."""
    count, most = len(request.updates), request.task.config.max_clients
    if count > most:
        raise Refusal(TOO_MANY_CLIENTS, "the sum could wrap", expected=f"at most {most}", got=count)


def updates_fresh(request: Request) -> None:
    """No update in two openings: the difference of two sums is one client's update."""
    if request.history.opened_before:
        again = sorted(request.history.opened_before)[0].hex()
        raise Refusal(
            UPDATE_OPENED_BEFORE, f"{len(request.history.opened_before)} of the updates", expected="none", got=again
        )


def versions_recent(request: Request) -> None:
    """Updates within the staleness limit of a model version that never goes back."""
    version = request.manifest.model_version
    if version < request.history.model_version:
        raise Refusal(
            STALE_UPDATE, "the model went back", expected=f"at least {request.history.model_version}", got=version
        )
    limit = request.task.config.staleness
    for header in request.headers:
        if not version - limit <= header.base_version <= version:
            raise Refusal(
                STALE_UPDATE,
                f"update {header.update_id.hex()}",
                expected=f"base version from {max(0, version - limit)} to {version}",
                got=header.base_version,
            )


def sizes_exact(request: Request) -> None:
    """Body parts of exactly the names and sizes that the profile fixes."""
    wanted = [(part.name, part.size) for part in request.task.body]
    for header in request.headers:
        got = [(part.name, part.size) for part in header.parts]
        if got != wanted:
            raise Refusal(WRONG_SIZE, f"update {header.update_id.hex()}", expected=wanted, got=got)


def within_budget(request: Request) -> None:
    """The epoch's number of openings: it bounds epsilon and what the flooding noise must hide.

    `keys.holder.join` has checked that `max_openings` keeps both promises.
    """
    if request.history.openings >= request.task.config.max_openings:
        raise Refusal(
            BUDGET_EXHAUSTED,
            "every opening that the task's privacy plan allows has been used",
            expected=f"fewer than {request.task.config.max_openings}",
            got=request.history.openings,
        )


def epoch_alive(request: Request) -> None:
    """Not one that this holder has ended: also not with a copy of its keys, and not a retry."""
    check_alive(request.task, request.history.destroyed)


RULES: tuple[Rule, ...] = (
    epoch_alive,
    manifest_signed,
    manifest_bound,
    round_not_forked,
    headers_complete,
    headers_signed,
    headers_bound,
    clients_distinct,
    updates_distinct,
    revocations_fresh,
    server_not_revoked,
    clients_not_revoked,
    buckets_numbered,
    buckets_large_enough,
    sums_fit,
    updates_fresh,
    versions_recent,
    sizes_exact,
    within_budget,
)


def judge(request: Request, rules: Sequence[Rule] = RULES) -> None:
    """Raise the first refusal of a manifest; return when every rule is content."""
    if len(request.updates) != len(request.manifest.updates):
        raise Refusal(MANIFEST_MISMATCH, "headers", expected=len(request.manifest.updates), got=len(request.updates))
    for rule in rules:
        rule(request)


def check_alive(task: Task, destroyed: bool) -> None:
    """Raises `epoch-destroyed`."""
    if destroyed:
        raise Refusal(EPOCH_DESTROYED, f"task {task.config.name!r}, epoch {task.config.epoch}")


def _bound(what: str, message: Manifest | UpdateHeader, task: Task) -> None:
    if message.task_hash != task.hash:
        raise Refusal(WRONG_TASK, what, expected=task.id, got=message.task_hash.hex())
    if message.epoch != task.config.epoch:
        raise Refusal(WRONG_EPOCH, what, expected=task.config.epoch, got=message.epoch)
