"""What a key holder checks before it releases anything (section 8 of the design).

Each rule is a pure function that raises a `Refusal`; `RULES` is all of them in order. Nothing that
the server says is believed but what clients and the authority signed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from he_protocol.identity import CLOCK_SKEW_SECONDS, check_credential
from he_protocol.messages import Manifest, SignedUpdate, UpdateHeader
from he_protocol.problems import (
    BUDGET_EXHAUSTED,
    CLOCK_SKEW,
    DUPLICATE_CLIENT,
    DUPLICATE_UPDATE,
    MANIFEST_FORK,
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    TOO_MANY_CLIENTS,
    UPDATE_OPENED_BEFORE,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_TASK,
    Refusal,
)
from he_protocol.signing import payload_hash, read_unverified, token_hash, verify
from he_protocol.task import Task


@dataclass(frozen=True)
class History:
    """What the holder's ledger knows that bears on one manifest.

    manifest_hash: of the manifest accepted for this round, or None. opened_before: those of the
    manifest's update ids that *other* rounds opened. openings: accepted ones of other rounds.
    """

    manifest_hash: bytes | None
    opened_before: frozenset[bytes]
    openings: int
    model_version: int


@dataclass(frozen=True)
class Request:
    """One manifest that a server asks to open, and all that is needed to judge it. `now` in Unix seconds."""

    task: Task
    authority: bytes
    manifest_token: str
    updates: tuple[SignedUpdate, ...]
    history: History
    floor: int
    now: float

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


def enough_clients(request: Request) -> None:
    """At least the task's minimum and this holder's own floor, at most what cannot wrap."""
    count, config = len(request.updates), request.task.config
    needed = max(config.min_clients, request.floor)
    if count < needed:
        raise Refusal(TOO_FEW_CLIENTS, f"round {request.manifest.round}", expected=f"at least {needed}", got=count)
    if count > config.max_clients:
        raise Refusal(TOO_MANY_CLIENTS, "the sum could wrap", expected=f"at most {config.max_clients}", got=count)


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


RULES: tuple[Rule, ...] = (
    manifest_signed,
    manifest_bound,
    round_not_forked,
    headers_complete,
    headers_signed,
    headers_bound,
    clients_distinct,
    updates_distinct,
    enough_clients,
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


def _bound(what: str, message: Manifest | UpdateHeader, task: Task) -> None:
    if message.task_hash != task.hash:
        raise Refusal(WRONG_TASK, what, expected=task.id, got=message.task_hash.hex())
    if message.epoch != task.config.epoch:
        raise Refusal(WRONG_EPOCH, what, expected=task.config.epoch, got=message.epoch)
