"""Every rule of `keys.checks`: the attack that it alone stops passes when the rule is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import pytest

from he_client.identity import Identity
from he_protocol.identity import CLOCK_SKEW_SECONDS
from he_protocol.messages import Part, SignedUpdate, UpdateHeader
from he_protocol.problems import (
    BAD_SIGNATURE,
    BUDGET_EXHAUSTED,
    CLOCK_SKEW,
    DUPLICATE_CLIENT,
    DUPLICATE_UPDATE,
    EPOCH_DESTROYED,
    EXPIRED_CREDENTIAL,
    FOREIGN_CREDENTIAL,
    MALFORMED,
    MANIFEST_FORK,
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    OLD_REVOCATIONS,
    REVOKED_KEY,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    TOO_MANY_CLIENTS,
    UNKNOWN_FIELD,
    UPDATE_OPENED_BEFORE,
    WRONG_EPOCH,
    WRONG_ROLE,
    WRONG_SIZE,
    WRONG_TASK,
    ProblemType,
)
from he_protocol.signing import SigningKey, read_unverified
from keys import checks
from keys.checks import RULES, Request, Rule, judge
from tests.support.openings import FRESH, ask
from tests.support.parties import NOW, Authority, World
from tests.support.revocations import DAY, revoked
from tests.support.rules import without
from tests.unit.refusals import refused

OTHER = b"\x77" * 32


@pytest.fixture(scope="module")
def world() -> World:
    return World(plan={"buckets": 2, "max_clients": 9})


def three(world: World, **changes: object) -> list[SignedUpdate]:
    """Updates of three clients; `changes` are to the last one's header."""
    return [world.update("alice"), world.update("bob"), world.update("carol", **changes)]


def crowd(world: World, count: int) -> list[SignedUpdate]:
    return [world.update(f"client-{i}") for i in range(count)]


def split(world: World, *sizes: int, floor: int = 1) -> Request:
    """Buckets of these sizes."""
    places = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    buckets = {f"client-{i}": bucket for i, bucket in enumerate(places)}
    return ask(world, crowd(world, len(places)), floor=floor, buckets=buckets)


def by(identity: Identity, header: UpdateHeader) -> SignedUpdate:
    return SignedUpdate(identity.key.sign(header), identity.credential)


def of(world: World, update: SignedUpdate, **changes: object) -> UpdateHeader:
    return msgspec.structs.replace(read_unverified(update.header, UpdateHeader), **changes)


def given_instead(world: World, replacement: Callable[[SignedUpdate], SignedUpdate]) -> Request:
    """The manifest lists an honest update, another header comes along in its place."""
    request = ask(world, three(world))
    first, *rest = request.updates
    return replace(request, updates=(replacement(first), *rest))


def with_signed(world: World, make: Callable[[World], SignedUpdate]) -> Request:
    return ask(world, [*three(world), make(world)])


def forged(world: World) -> SignedUpdate:
    """The server signs in a client's name, with the client's credential."""
    return replace_token(world.update("dave"), world.server.key)


def replace_token(update: SignedUpdate, key: SigningKey) -> SignedUpdate:
    return SignedUpdate(key.sign(read_unverified(update.header, UpdateHeader)), update.credential)


def self_enrolled(world: World) -> SignedUpdate:
    """A client that the server enrolled under an authority of its own."""
    return by(Authority().party("dave", "client"), of(world, world.update("dave")))


def expired(world: World) -> SignedUpdate:
    old = world.authority.party("dave", "client", now=NOW - 10 * 86400, days=9)
    return by(old, of(world, world.update("dave")))


def not_yet_valid(world: World) -> SignedUpdate:
    return by(world.authority.party("dave", "client", now=NOW + 3600), of(world, world.update("dave")))


def by_a_holder(world: World) -> SignedUpdate:
    return by(world.committee[0], of(world, world.update("dave"), client=world.committee[0].name))


def for_somebody_else(world: World) -> SignedUpdate:
    """An enrolled client poses as another one, to count twice."""
    return by(world.client("mallory"), of(world, world.update("dave")))


def colliding(world: World) -> Request:
    """A second client copies the victim's update id, so that one of the two can be served for both."""
    updates = three(world)
    return ask(world, [*updates, world.update("mallory", update_id=of(world, updates[0]).update_id)])


def parts(world: World, change: Callable[[tuple[Part, ...]], tuple[Part, ...]]) -> Request:
    honest = of(world, world.update("carol")).parts
    return ask(world, three(world, parts=change(honest)))


def opened_before(world: World) -> Request:
    updates = three(world)
    return ask(world, updates, history=replace(FRESH, opened_before=frozenset({of(world, updates[1]).update_id})))


def knowing(world: World, request: Request, *stolen: Identity, age: float = 0.0) -> Request:
    """The request as a holder judges it that has seen these keys revoked, `age` seconds ago, for a day."""
    known = revoked(world.authority.key, *(one.credential for one in stolen), now=NOW - age)
    return replace(request, history=replace(request.history, revocations=known))


def stolen_in(world: World, *buckets: int) -> Request:
    """Two buckets of three; the keys of a client in each of these are revoked."""
    return knowing(world, split(world, 3, 3), *(world.client(f"client-{3 * bucket}") for bucket in buckets))


def relabelled(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return (msgspec.structs.replace(parts[0], name=parts[1].name), *parts[1:])


def resized(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return (*parts[:-1], msgspec.structs.replace(parts[-1], size=parts[-1].size - 1))


@dataclass(frozen=True)
class Attack:
    """A request that exactly one rule refuses."""

    rule: Rule
    problem: ProblemType
    what: str
    make: Callable[[World], Request]


ATTACKS = [
    Attack(
        checks.manifest_signed,
        BAD_SIGNATURE,
        "by somebody else",
        lambda w: ask(w, three(w), signer=SigningKey.generate()),
    ),
    Attack(
        checks.manifest_signed, BAD_SIGNATURE, "by a client", lambda w: ask(w, three(w), signer=w.client("eve").key)
    ),
    Attack(checks.manifest_bound, WRONG_TASK, "other task", lambda w: ask(w, three(w), task_hash=OTHER)),
    Attack(checks.manifest_bound, WRONG_EPOCH, "other epoch", lambda w: ask(w, three(w), epoch=2)),
    Attack(
        checks.round_not_forked,
        MANIFEST_FORK,
        "second manifest",
        lambda w: ask(w, three(w), history=replace(FRESH, manifest_hash=OTHER)),
    ),
    Attack(
        checks.headers_complete,
        MANIFEST_MISMATCH,
        "unlisted client",
        lambda w: given_instead(w, lambda _: w.update("dave")),
    ),
    Attack(
        checks.headers_complete,
        MANIFEST_MISMATCH,
        "other header, same id and client",
        lambda w: given_instead(w, lambda u: by(w.clients[of(w, u).client], of(w, u, created=int(NOW) - 1))),
    ),
    Attack(
        checks.headers_complete,
        MANIFEST_MISMATCH,
        "other order",
        lambda w: (lambda r: replace(r, updates=r.updates[::-1]))(ask(w, three(w))),
    ),
    Attack(checks.headers_signed, BAD_SIGNATURE, "forged by the server", lambda w: with_signed(w, forged)),
    Attack(checks.headers_signed, FOREIGN_CREDENTIAL, "other authority", lambda w: with_signed(w, self_enrolled)),
    Attack(checks.headers_signed, EXPIRED_CREDENTIAL, "expired", lambda w: with_signed(w, expired)),
    Attack(checks.headers_signed, EXPIRED_CREDENTIAL, "not yet valid", lambda w: with_signed(w, not_yet_valid)),
    Attack(checks.headers_signed, WRONG_ROLE, "a holder's credential", lambda w: with_signed(w, by_a_holder)),
    Attack(checks.headers_signed, NOT_ADDRESSED, "another's name", lambda w: with_signed(w, for_somebody_else)),
    Attack(checks.headers_bound, WRONG_TASK, "other task", lambda w: ask(w, three(w, task_hash=OTHER))),
    Attack(checks.headers_bound, WRONG_EPOCH, "other epoch", lambda w: ask(w, three(w, epoch=0))),
    Attack(
        checks.headers_bound,
        CLOCK_SKEW,
        "from the future",
        lambda w: ask(w, three(w, created=int(NOW) + CLOCK_SKEW_SECONDS + 1)),
    ),
    Attack(checks.clients_distinct, DUPLICATE_CLIENT, "twice", lambda w: ask(w, [*three(w), w.update("alice")])),
    Attack(checks.updates_distinct, DUPLICATE_UPDATE, "one id, two clients", colliding),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "nobody", lambda w: ask(w, [])),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "a gap", lambda w: split(w, 3, 0, 3)),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "not from 0", lambda w: split(w, 0, 3)),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "more than the task has", lambda w: split(w, 3, 3, 3)),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "below the task's minimum", lambda w: ask(w, three(w)[:2])),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "below our floor", lambda w: ask(w, three(w), floor=4)),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "one bucket below", lambda w: split(w, 4, 2)),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "floor of a bucket", lambda w: split(w, 3, 4, floor=4)),
    Attack(checks.sums_fit, TOO_MANY_CLIENTS, "sum could wrap", lambda w: ask(w, crowd(w, 10))),
    Attack(checks.updates_fresh, UPDATE_OPENED_BEFORE, "in two openings", opened_before),
    Attack(
        checks.versions_recent,
        STALE_UPDATE,
        "the model goes back",
        lambda w: ask(w, three(w), history=replace(FRESH, model_version=1)),
    ),
    Attack(
        checks.versions_recent,
        STALE_UPDATE,
        "too old",
        lambda w: ask(w, [w.update(n, base_version=v) for n, v in (("a", 3), ("b", 2), ("c", 0))], model_version=3),
    ),
    Attack(checks.versions_recent, STALE_UPDATE, "not yet there", lambda w: ask(w, three(w, base_version=1))),
    Attack(checks.sizes_exact, WRONG_SIZE, "short part", lambda w: parts(w, resized)),
    Attack(checks.sizes_exact, WRONG_SIZE, "missing part", lambda w: parts(w, lambda p: p[:1])),
    Attack(checks.sizes_exact, WRONG_SIZE, "part twice", lambda w: parts(w, lambda p: (*p, p[-1]))),
    Attack(checks.sizes_exact, WRONG_SIZE, "wrong name", lambda w: parts(w, relabelled)),
    Attack(
        checks.within_budget,
        BUDGET_EXHAUSTED,
        "one opening too many",
        lambda w: ask(w, three(w), history=replace(FRESH, openings=10)),
    ),
    Attack(
        checks.epoch_alive,
        EPOCH_DESTROYED,
        "an epoch that was destroyed",
        lambda w: ask(w, three(w), history=replace(FRESH, destroyed=True)),
    ),
    Attack(
        checks.revocations_fresh,
        OLD_REVOCATIONS,
        "the next list is held back",
        lambda w: knowing(w, ask(w, three(w)), age=DAY),
    ),
    Attack(
        checks.revocations_fresh,
        OLD_REVOCATIONS,
        "every list is held back",
        lambda w: replace(ask(w, three(w)), require_revocations=True),
    ),
    Attack(
        checks.server_not_revoked,
        REVOKED_KEY,
        "a stolen server key",
        lambda w: knowing(w, ask(w, three(w)), w.server),
    ),
    Attack(
        checks.clients_not_revoked,
        REVOKED_KEY,
        "a stolen client key",
        lambda w: knowing(w, ask(w, three(w)), w.client("carol")),
    ),
    Attack(
        checks.clients_not_revoked,
        REVOKED_KEY,
        "one that signs an old date",
        lambda w: knowing(w, ask(w, three(w, created=0)), w.client("carol")),
    ),
    Attack(checks.clients_not_revoked, REVOKED_KEY, "one in every bucket", lambda w: stolen_in(w, 0, 1)),
]


def test_every_rule_has_an_attack_that_it_alone_stops() -> None:
    assert {attack.rule for attack in ATTACKS} == set(RULES)
    assert len(set(RULES)) == len(RULES)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.rule.__name__}-{a.what}".replace(" ", "_"))
def test_the_rule_stops_the_attack_and_nothing_else_does(world: World, attack: Attack) -> None:
    request = attack.make(world)
    with refused(attack.problem):
        judge(request)
    with refused(attack.problem):
        attack.rule(request)
    judge(request, without(attack.rule))


HONEST: dict[str, Callable[[World], Request]] = {
    "plain": lambda w: ask(w, three(w)),
    "exactly our floor": lambda w: ask(w, three(w), floor=3),
    "as many as the task allows": lambda w: ask(w, crowd(w, 9)),
    "as many buckets as the task allows": lambda w: split(w, 3, 3),
    "last opening of the budget": lambda w: ask(w, three(w), history=replace(FRESH, openings=9)),
    "as stale as allowed, and as new as the model": lambda w: ask(
        w, [w.update(n, base_version=v) for n, v in (("a", 1), ("b", 2), ("c", 3))], model_version=3
    ),
    "the model stands still": lambda w: ask(w, three(w), history=replace(FRESH, model_version=0)),
    "clock ahead by the allowance": lambda w: ask(w, three(w, created=int(NOW) + CLOCK_SKEW_SECONDS)),
    "a revoked client in one bucket of two": lambda w: stolen_in(w, 1),
    "somebody else was revoked": lambda w: knowing(w, ask(w, three(w)), w.client("eve")),
    "the last second of a list": lambda w: knowing(w, ask(w, three(w)), age=DAY - 1),
    "a list where one is needed": lambda w: replace(knowing(w, ask(w, three(w))), require_revocations=True),
    "a retry": lambda w: (lambda r: replace(r, history=replace(FRESH, manifest_hash=r.manifest_hash)))(
        ask(w, three(w))
    ),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=[name.replace(" ", "_") for name in HONEST])
def test_an_honest_request_passes_every_rule(world: World, make: Callable[[World], Request]) -> None:
    request = make(world)
    judge(request)
    for rule in RULES:
        rule(request)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_headers_is_refused_whatever_the_rules(world: World, count: int) -> None:
    updates = [*three(world), world.update("dave")]
    request = ask(world, updates[:3])
    given = (*request.updates, updates[3])[:count]
    with refused(MANIFEST_MISMATCH):
        judge(replace(request, updates=given), ())


@pytest.mark.parametrize("token", ["", "a.b.c", "no jws"])
def test_what_is_no_manifest_is_malformed(world: World, token: str) -> None:
    with refused(MALFORMED):
        judge(replace(ask(world, three(world)), manifest_token=token))


def test_a_header_that_does_not_parse_is_refused(world: World) -> None:
    request = ask(world, three(world))
    broken = SignedUpdate("x.y.z", request.updates[0].credential)
    with refused(MALFORMED):
        judge(replace(request, updates=(broken, *request.updates[1:])))


def test_another_kind_of_message_is_no_manifest(world: World) -> None:
    with refused(UNKNOWN_FIELD, "Manifest"):
        judge(replace(ask(world, three(world)), manifest_token=world.server.credential))
