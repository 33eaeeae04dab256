"""What a key holder checks before it votes for a manifest, and before it releases a share (section 8 of the design).

Each rule is a pure function that raises a `ProblemError`. Nothing that the server says is believed but what clients,
holders and the authority signed. What depends on time is judged at the moment when the manifest was formed: holders
that look at it earlier and later come to the same conclusion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, update_wrapper

from he_holder.request import OpeningRequest
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS, check_credential, issued_by
from he_protocol.identity.jws import public_from_jwk, read_unverified, token_hash, verify
from he_protocol.identity.revocation import check_fresh, check_key
from he_protocol.messages import Exclusion, Manifest, SignedUpdate, UpdateHeader, Vote
from he_protocol.problems import (
    BAD_SIGNATURE,
    BUDGET_EXHAUSTED,
    CLOCK_SKEW,
    DUPLICATE_CLIENT,
    DUPLICATE_UPDATE,
    EPOCH_DESTROYED,
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    NOT_CERTIFIED,
    NUMBER_USED,
    OLD_REVOCATIONS,
    REPEATED_BASE,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    TOO_MANY_CLIENTS,
    UPDATE_OPENED_BEFORE,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_TASK,
)
from he_protocol.task import Task

Rule = Callable[[OpeningRequest], None]


class UpdateRule:
    """A rule about single updates: called with a request, it looks at all of them."""

    def __init__(self, check: Callable[[OpeningRequest, SignedUpdate, UpdateHeader], None]) -> None:
        self.check = check
        self.__name__: str
        update_wrapper(self, check)

    def __call__(self, request: OpeningRequest) -> None:
        for update, header in zip(request.updates, request.headers, strict=True):
            self.check(request, update, header)


def epoch_alive(request: OpeningRequest) -> None:
    """Not one that this holder has ended: also not with a copy of its keys, and not a retry."""
    check_alive(request.task, request.ledger_view.destroyed)


def manifest_signed(request: OpeningRequest) -> None:
    """By the task's server."""
    verify(request.manifest_token, Manifest, request.task.config.server.key)


def manifest_bound(request: OpeningRequest) -> None:
    """To this task and epoch."""
    _bound("the manifest", request.manifest, request.task)


def number_in_plan(request: OpeningRequest) -> None:
    """Opening numbers go up to the epoch's number of openings: it bounds epsilon and what the flooding noise must hide.

    Every number names one manifest, so that no more sums are opened, whichever holders see them. `KeyHolder.join` has
    checked that `max_openings` keeps both promises.
    """
    most, number = request.task.config.rounds.max_openings, request.manifest.opening
    if number > most:
        raise ProblemError(
            BUDGET_EXHAUSTED,
            "every opening that the task's privacy plan allows has been used",
            expected=f"opening {most} at most",
            got=number,
        )


def number_unused(request: OpeningRequest) -> None:
    """One manifest for each opening number, for ever: the same again is a retry."""
    before = request.ledger_view.voted
    if before is not None and before != request.manifest_hash:
        raise ProblemError(
            NUMBER_USED,
            f"opening {request.manifest.opening}",
            expected=before.hex(),
            got=request.manifest_hash.hex(),
        )


def time_moves_on(request: OpeningRequest) -> None:
    """A manifest is formed neither in the future, nor before the one that came before it, nor an update's lifetime ago.

    So a server can lie about time by no more than the time between two openings.
    """
    if request.ledger_view.voted == request.manifest_hash:
        return  # a retry, which was in time before
    formed, now = request.manifest.formed, request.now
    oldest = max(request.ledger_view.formed, int(now) - request.task.config.rounds.update_lifetime)
    if not oldest <= formed <= now + CLOCK_SKEW_SECONDS:
        raise ProblemError(
            CLOCK_SKEW, "the time of the manifest", expected=f"from {oldest} to about {int(now)}", got=formed
        )


def model_moves_on(request: OpeningRequest) -> None:
    """The model's version never goes back from opening to opening."""
    version, seen = request.manifest.model_version, request.ledger_view.model_version
    if version < seen:
        raise ProblemError(STALE_UPDATE, "the model went back", expected=f"at least {seen}", got=version)


def headers_complete(request: OpeningRequest) -> None:
    """Exactly the headers that the manifest lists: same order, digest, update id and client."""
    listed = [(entry.header, entry.update_id, entry.client) for entry in request.manifest.updates]
    given = [
        (token_hash(update.header), header.update_id, header.client)
        for update, header in zip(request.updates, request.headers, strict=True)
    ]
    if listed != given:
        raise ProblemError(MANIFEST_MISMATCH, "digest, id or client differ", expected=len(listed), got=len(given))


def clients_distinct(request: OpeningRequest) -> None:
    """One update per client: two of one client would halve the others' cover."""
    seen: set[str] = set()
    for header in request.headers:
        if header.client in seen:
            raise ProblemError(DUPLICATE_CLIENT, f"{header.client!r} has two updates in round {request.manifest.round}")
        seen.add(header.client)


def updates_distinct(request: OpeningRequest) -> None:
    """No update twice: a client could read itself as its own noise."""
    ids = [header.update_id for header in request.headers]
    if len(set(ids)) != len(ids):
        raise ProblemError(DUPLICATE_UPDATE, f"an update id stands twice in round {request.manifest.round}")


def revocations_fresh(request: OpeningRequest) -> None:
    """A server that holds back the authority's next list gains the rest of this one's time, and no more."""
    known = request.ledger_view.revocations
    if request.require_revocations and not known.number:
        raise ProblemError(OLD_REVOCATIONS, "no revocation list is known", expected="one", got="none")
    check_fresh(known, request.now)


def server_not_revoked(request: OpeningRequest) -> None:
    """A signature under the server's key may come from a thief of that key."""
    server = request.task.config.server
    check_key(request.ledger_view.revocations, server.name, server.key)


def buckets_numbered(request: OpeningRequest) -> None:
    """From 0 on without a gap, and no more than the task has: every bucket is one more sum that is seen."""
    found, most = sorted({entry.bucket for entry in request.manifest.updates}), request.task.config.rounds.buckets
    if found != list(range(len(found))) or not 1 <= len(found) <= most:
        raise ProblemError(
            MANIFEST_MISMATCH,
            "the buckets are not numbered from 0 on",
            expected=f"1 to {most} buckets",
            got=found[: most + 1],
        )


def buckets_large_enough(request: OpeningRequest) -> None:
    """Every bucket alone has the task's minimum and this holder's own floor: each is a sum that is seen."""
    needed = max(request.task.config.rounds.min_clients, request.min_clients_floor)
    for bucket, count in sorted(Counter(entry.bucket for entry in request.manifest.updates).items()):
        if count < needed:
            where = f"bucket {bucket} of round {request.manifest.round}"
            raise ProblemError(TOO_FEW_CLIENTS, where, expected=f"at least {needed}", got=count)


def sums_fit(request: OpeningRequest) -> None:
    """No more clients than sums can hold without wrapping."""
    count, most = len(request.updates), request.task.config.rounds.max_clients
    if count > most:
        raise ProblemError(TOO_MANY_CLIENTS, "the sum could wrap", expected=f"at most {most}", got=count)


@UpdateRule
def headers_signed(request: OpeningRequest, update: SignedUpdate, header: UpdateHeader) -> None:
    """Every header by the client that it names, under a client credential of our authority valid when it was formed."""
    party = check_credential(update.credential, request.authority, "client", request.manifest.formed)
    if signer_of(update, request.authority) != party.public:
        raise ProblemError(BAD_SIGNATURE, "the header's signature is of another key")
    if party.name != header.client:
        raise ProblemError(NOT_ADDRESSED, "a header speaks for another client", expected=party.name, got=header.client)


@UpdateRule
def headers_bound(request: OpeningRequest, _update: SignedUpdate, header: UpdateHeader) -> None:
    """To this task and epoch, and made neither after the manifest nor an update's lifetime before it."""
    what = f"update {header.update_id.hex()}"
    _bound(f"the header of {what}", header, request.task)
    formed = request.manifest.formed
    if header.created > formed + CLOCK_SKEW_SECONDS:
        raise ProblemError(CLOCK_SKEW, what, expected=f"at most {formed}", got=header.created)
    if header.created < (oldest := formed - request.task.config.rounds.update_lifetime):
        raise ProblemError(STALE_UPDATE, f"{what} is too old", expected=f"created after {oldest}", got=header.created)


@UpdateRule
def updates_fresh(request: OpeningRequest, _update: SignedUpdate, header: UpdateHeader) -> None:
    """No update in two openings: the difference of two sums is one client's update."""
    if header.update_id in request.ledger_view.opened_before:
        raise ProblemError(UPDATE_OPENED_BEFORE, f"update {header.update_id.hex()}")


@UpdateRule
def bases_fresh(request: OpeningRequest, _update: SignedUpdate, header: UpdateHeader) -> None:
    """Without DP noise, no client twice on one model version: such sums are equations over the same data."""
    if not request.task.config.privacy.noisy and (header.client, header.base_version) in request.ledger_view.repeated:
        raise ProblemError(REPEATED_BASE, f"update {header.update_id.hex()}", got=f"base version {header.base_version}")


@UpdateRule
def versions_recent(request: OpeningRequest, _update: SignedUpdate, header: UpdateHeader) -> None:
    """Updates within the staleness limit."""
    version, limit = request.manifest.model_version, request.task.config.rounds.staleness
    if not version - limit <= header.base_version <= version:
        raise ProblemError(
            STALE_UPDATE,
            f"update {header.update_id.hex()}",
            expected=f"base version from {max(0, version - limit)} to {version}",
            got=header.base_version,
        )


@UpdateRule
def sizes_exact(request: OpeningRequest, _update: SignedUpdate, header: UpdateHeader) -> None:
    """sections of exactly the names and sizes that the profile fixes."""
    wanted = [(section.name, section.size) for section in request.task.body]
    got = [(section.name, section.size) for section in header.sections]
    if got != wanted:
        raise ProblemError(WRONG_SIZE, f"update {header.update_id.hex()}", expected=wanted, got=got)


@UpdateRule
def clients_not_revoked(request: OpeningRequest, update: SignedUpdate, header: UpdateHeader) -> None:
    """No update of a revoked key. When a header was signed does not matter: a stolen key signs any date.

    A list may come while others have voted already, and then a vote against the manifest would hold its round up for
    ever. So this rule screens, and keeps buckets closed at release; it does not bind votes.
    """
    public = public_from_jwk(issued_by(request.authority, update.credential).cnf.jwk.x)
    check_key(request.ledger_view.revocations, header.client, public)


def certified(request: OpeningRequest) -> None:
    """Enough of the committee have voted for exactly this manifest: so no other has its number or its updates."""
    task, manifest = request.task, request.manifest
    members = {holder.name: holder.key for holder in task.config.committee.holders}
    voters = set()
    for token in request.votes:
        claimed = read_unverified(token, Vote)
        if claimed.holder not in members:
            raise ProblemError(NOT_ADDRESSED, "a vote from outside the committee", got=claimed.holder)
        vote = verify(token, Vote, members[claimed.holder])
        _bound("a vote", vote, task)
        if (vote.opening, vote.manifest) != (manifest.opening, request.manifest_hash):
            raise ProblemError(NOT_CERTIFIED, f"the vote of {vote.holder!r} is for another manifest")
        voters.add(vote.holder)
    if len(voters) < task.committee.agreement:
        raise ProblemError(
            NOT_CERTIFIED,
            f"opening {manifest.opening}",
            expected=f"votes of {task.committee.agreement} holders",
            got=len(voters),
        )


VOTING: tuple[Rule, ...] = (
    epoch_alive,
    manifest_signed,
    manifest_bound,
    number_in_plan,
    number_unused,
    time_moves_on,
    model_moves_on,
    headers_complete,
    clients_distinct,
    updates_distinct,
    revocations_fresh,
    server_not_revoked,
    buckets_numbered,
    buckets_large_enough,
    sums_fit,
    headers_signed,
    headers_bound,
    updates_fresh,
    bases_fresh,
    versions_recent,
    sizes_exact,
)
"""Before a vote."""

SCREENING: tuple[Rule, ...] = (*VOTING, clients_not_revoked)
"""Before anything binds: what is wrong with single updates leaves them out, anything else refuses the manifest."""

RELEASING: tuple[Rule, ...] = (
    epoch_alive,
    manifest_signed,
    manifest_bound,
    number_in_plan,
    number_unused,
    headers_complete,
    updates_distinct,
    revocations_fresh,
    server_not_revoked,
    buckets_large_enough,
    headers_signed,
    updates_fresh,
    certified,
)
"""Before a share leaves: the votes of others are worth their judgement, our own ledger must not contradict them."""


def check_all(request: OpeningRequest, rules: Sequence[Rule] = VOTING) -> None:
    """Raise the first refusal of a manifest; return when all rules pass."""
    if len(request.updates) != len(request.manifest.updates):
        raise ProblemError(
            MANIFEST_MISMATCH, "headers", expected=len(request.manifest.updates), got=len(request.updates)
        )
    for rule in rules:
        rule(request)


def screen(request: OpeningRequest, rules: Sequence[Rule] = SCREENING) -> tuple[Exclusion, ...]:
    """The updates that should be left out. Raises the first refusal of what no leaving out would mend."""
    check_all(request, [rule for rule in rules if not isinstance(rule, UpdateRule)])
    found = []
    for update, header in zip(request.updates, request.headers, strict=True):
        try:
            for rule in rules:
                if isinstance(rule, UpdateRule):
                    rule.check(request, update, header)
        except ProblemError as refusal:
            found.append(Exclusion(header.update_id, refusal.problem.slug))
    return tuple(found)


def revoked_buckets(request: OpeningRequest) -> dict[int, bytes]:
    """The buckets that stay closed because a client's key of theirs was revoked, with the first such update's id."""
    found: dict[int, bytes] = {}
    for entry, update, header in zip(request.manifest.updates, request.updates, request.headers, strict=True):
        try:
            clients_not_revoked.check(request, update, header)
        except ProblemError:
            found.setdefault(entry.bucket, entry.update_id)
    return found


@lru_cache(maxsize=1 << 14)
def signer_of(update: SignedUpdate, authority: bytes) -> bytes:
    """The key that signed a header: the one of its credential, whose issuer is checked too, but not its validity.

    A holder looks at the same header up to three times.
    """
    public = public_from_jwk(issued_by(authority, update.credential).cnf.jwk.x)
    verify(update.header, UpdateHeader, public)
    return public


def check_alive(task: Task, destroyed: bool) -> None:
    """Raises `epoch-destroyed`."""
    if destroyed:
        raise ProblemError(EPOCH_DESTROYED, f"task {task.config.name!r}, epoch {task.config.epoch}")


def _bound(what: str, message: Manifest | UpdateHeader | Vote, task: Task) -> None:
    if message.task_hash != task.hash:
        raise ProblemError(WRONG_TASK, what, expected=task.id, got=message.task_hash.hex())
    if message.epoch != task.config.epoch:
        raise ProblemError(WRONG_EPOCH, what, expected=task.config.epoch, got=message.epoch)
