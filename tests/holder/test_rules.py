"""Every rule of `he_holder.rules`: the attack that it alone stops passes when the rule is off.

Before a vote, before anything binds, before a share leaves: wherever the rule stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from he_holder import rules as checks
from he_holder.request import OpeningRequest
from he_holder.rules import RELEASING, SCREENING, VOTING, Rule, UpdateRule, check_all, revoked_buckets, screen
from he_party.identity import Identity
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.messages import SectionEntry, SignedUpdate, UpdateHeader
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
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    NOT_CERTIFIED,
    NUMBER_USED,
    OLD_REVOCATIONS,
    REPEATED_BASE,
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
from he_testing.clocks import FakeClock
from he_testing.parties import Authority
from he_testing.problems import expect_problem
from tests.support.openings import FRESH, ask, certify, vote
from tests.support.parties import NOW, World
from tests.support.revocations import DAY, revoked
from tests.support.rules import EVERY_RULE, without

OTHER = b"\x77" * 32
LIFETIME = 30 * 86_400
STAGES = {"screening": SCREENING, "voting": VOTING, "releasing": RELEASING}


@pytest.fixture(scope="module")
def world() -> World:
    return World(plan={"buckets": 2, "max_clients": 9})


def three(world: World, **changes: Any) -> list[SignedUpdate]:
    """Updates of three clients; `changes` are to the last one's header."""
    return [world.update("alice"), world.update("bob"), world.update("carol", **changes)]


def crowd(world: World, count: int) -> list[SignedUpdate]:
    return [world.update(f"client-{i}") for i in range(count)]


def split(world: World, *sizes: int, floor: int = 1) -> OpeningRequest:
    """Buckets of these sizes."""
    places = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    buckets = {f"client-{i}": bucket for i, bucket in enumerate(places)}
    return ask(world, crowd(world, len(places)), min_clients_floor=floor, buckets=buckets)


def by(identity: Identity, header: UpdateHeader) -> SignedUpdate:
    return SignedUpdate(identity.key.sign(header), identity.credential)


def of(world: World, update: SignedUpdate, **changes: Any) -> UpdateHeader:
    return msgspec.structs.replace(read_unverified(update.header, UpdateHeader), **changes)


def given_instead(world: World, replacement: Callable[[SignedUpdate], SignedUpdate]) -> OpeningRequest:
    """The manifest lists an honest update, another header comes along in its place."""
    request = ask(world, three(world))
    first, *rest = request.updates
    return replace(request, updates=(replacement(first), *rest))


def with_signed(world: World, make: Callable[[World], SignedUpdate]) -> OpeningRequest:
    return ask(world, [*three(world), make(world)])


def forged(world: World) -> SignedUpdate:
    """The server signs in a client's name, with the client's credential."""
    return replace_token(world.update("dave"), world.server.key)


def replace_token(update: SignedUpdate, key: SigningKey) -> SignedUpdate:
    return SignedUpdate(key.sign(read_unverified(update.header, UpdateHeader)), update.credential)


def self_enrolled(world: World) -> SignedUpdate:
    """A client that the server enrolled under an authority of its own."""
    return by(Authority(clock=FakeClock()).party("dave", "client"), of(world, world.update("dave")))


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


def colliding(world: World) -> OpeningRequest:
    """A second client copies the victim's update id, so that one of the two can be served for both."""
    updates = three(world)
    return ask(world, [*updates, world.update("mallory", update_id=of(world, updates[0]).update_id)])


def sections(world: World, change: Callable[[tuple[SectionEntry, ...]], tuple[SectionEntry, ...]]) -> OpeningRequest:
    honest = of(world, world.update("carol")).sections
    return ask(world, three(world, sections=change(honest)))


def opened_before(world: World) -> OpeningRequest:
    updates = three(world)
    return ask(world, updates, ledger_view=replace(FRESH, opened_before=frozenset({of(world, updates[1]).update_id})))


def repeated(world: World) -> OpeningRequest:
    """Carol's second update on one model version, after one with her first was voted for."""
    return ask(world, three(world), ledger_view=replace(FRESH, repeated=frozenset({("carol", 0)})))


def voted(world: World, *holders: int, **changes: Any) -> OpeningRequest:
    """A manifest with the votes of these holders; `changes` are to their last one."""
    request = ask(world, three(world))
    certified = certify(world, request, holders[:-1])
    return replace(certified, votes=(*certified.votes, *(vote(world, one, request, **changes) for one in holders[-1:])))


def at(stage: str, world: World, request: OpeningRequest, rule: Rule | None = None) -> OpeningRequest:
    """The request with what the stage needs besides: a certificate, unless that is what is attacked."""
    return certify(world, request) if stage == "releasing" and rule is not checks.certified else request


def knowing(world: World, request: OpeningRequest, *stolen: Identity, age: float = 0.0) -> OpeningRequest:
    """The request as a holder judges it that has seen these keys revoked, `age` seconds ago, for a day."""
    known = revoked(world.authority.key, *(one.credential for one in stolen), now=NOW - age)
    return replace(request, ledger_view=replace(request.ledger_view, revocations=known))


def stolen_in(world: World, *buckets: int) -> OpeningRequest:
    """Two buckets of three; the keys of a client in each of these are revoked."""
    return knowing(world, split(world, 3, 3), *(world.client(f"client-{3 * bucket}") for bucket in buckets))


def relabelled(sections: tuple[SectionEntry, ...]) -> tuple[SectionEntry, ...]:
    return (msgspec.structs.replace(sections[0], name=sections[1].name), *sections[1:])


def resized(sections: tuple[SectionEntry, ...]) -> tuple[SectionEntry, ...]:
    return (*sections[:-1], msgspec.structs.replace(sections[-1], size=sections[-1].size - 1))


@dataclass(frozen=True)
class Attack:
    """A request that exactly one rule refuses; in screening, `also` is a second that would."""

    rule: Rule
    problem: ProblemType
    what: str
    make: Callable[[World], OpeningRequest]
    also: Rule | None = None

    def others(self, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        """The rules, with what stops the attack switched off."""
        return without(*(rule for rule in (self.rule, self.also) if rule in rules), rules=rules)

    @property
    def name(self) -> str:
        return f"{self.rule.__name__}-{self.what}".replace(" ", "_")


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
        checks.number_in_plan,
        BUDGET_EXHAUSTED,
        "one opening too many",
        lambda w: ask(w, three(w), opening=11),
    ),
    Attack(
        checks.number_unused,
        NUMBER_USED,
        "second manifest",
        lambda w: ask(w, three(w), ledger_view=replace(FRESH, voted=OTHER)),
    ),
    Attack(
        checks.time_moves_on,
        CLOCK_SKEW,
        "formed in the future",
        lambda w: ask(w, three(w), formed=int(NOW) + CLOCK_SKEW_SECONDS + 1),
    ),
    Attack(
        checks.time_moves_on,
        CLOCK_SKEW,
        "formed before the one before",
        lambda w: ask(w, three(w), ledger_view=replace(FRESH, formed=int(NOW) + 1)),
    ),
    Attack(
        checks.time_moves_on,
        CLOCK_SKEW,
        "formed so long ago that credentials were valid then",
        lambda w: ask(w, three(w), now=NOW + LIFETIME + 1),
    ),
    Attack(
        checks.model_moves_on,
        STALE_UPDATE,
        "the model goes back",
        lambda w: ask(w, three(w), ledger_view=replace(FRESH, model_version=1)),
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
    Attack(
        checks.headers_signed,
        FOREIGN_CREDENTIAL,
        "other authority",
        lambda w: with_signed(w, self_enrolled),
        checks.clients_not_revoked,
    ),
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
    Attack(
        checks.headers_bound,
        STALE_UPDATE,
        "from another age",
        lambda w: ask(w, three(w, created=int(NOW) - LIFETIME - 1)),
    ),
    Attack(checks.clients_distinct, DUPLICATE_CLIENT, "twice", lambda w: ask(w, [*three(w), w.update("alice")])),
    Attack(checks.updates_distinct, DUPLICATE_UPDATE, "one id, two clients", colliding),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "nobody", lambda w: ask(w, [])),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "a gap", lambda w: split(w, 3, 0, 3)),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "not from 0", lambda w: split(w, 0, 3)),
    Attack(checks.buckets_numbered, MANIFEST_MISMATCH, "more than the task has", lambda w: split(w, 3, 3, 3)),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "below the task's minimum", lambda w: ask(w, three(w)[:2])),
    Attack(
        checks.buckets_large_enough, TOO_FEW_CLIENTS, "below our floor", lambda w: ask(w, three(w), min_clients_floor=4)
    ),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "one bucket below", lambda w: split(w, 4, 2)),
    Attack(checks.buckets_large_enough, TOO_FEW_CLIENTS, "floor of a bucket", lambda w: split(w, 3, 4, floor=4)),
    Attack(checks.sums_fit, TOO_MANY_CLIENTS, "sum could wrap", lambda w: ask(w, crowd(w, 10))),
    Attack(checks.updates_fresh, UPDATE_OPENED_BEFORE, "in two openings", opened_before),
    Attack(checks.bases_fresh, REPEATED_BASE, "the same data in another crowd", repeated),
    Attack(
        checks.versions_recent,
        STALE_UPDATE,
        "too old",
        lambda w: ask(w, [w.update(n, base_version=v) for n, v in (("a", 3), ("b", 2), ("c", 0))], model_version=3),
    ),
    Attack(checks.versions_recent, STALE_UPDATE, "not yet there", lambda w: ask(w, three(w, base_version=1))),
    Attack(checks.sizes_exact, WRONG_SIZE, "short part", lambda w: sections(w, resized)),
    Attack(checks.sizes_exact, WRONG_SIZE, "missing part", lambda w: sections(w, lambda p: p[:1])),
    Attack(checks.sizes_exact, WRONG_SIZE, "part twice", lambda w: sections(w, lambda p: (*p, p[-1]))),
    Attack(checks.sizes_exact, WRONG_SIZE, "wrong name", lambda w: sections(w, relabelled)),
    Attack(
        checks.epoch_alive,
        EPOCH_DESTROYED,
        "an epoch that was destroyed",
        lambda w: ask(w, three(w), ledger_view=replace(FRESH, destroyed=True)),
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
        lambda w: knowing(w, ask(w, three(w, created=int(NOW) - 86_400)), w.client("carol")),
    ),
    Attack(checks.clients_not_revoked, REVOKED_KEY, "one in every bucket", lambda w: stolen_in(w, 0, 1)),
    Attack(checks.certified, NOT_CERTIFIED, "no vote", lambda w: voted(w)),
    Attack(checks.certified, NOT_CERTIFIED, "too few votes", lambda w: voted(w, 0, 1)),
    Attack(checks.certified, NOT_CERTIFIED, "one voter twice", lambda w: voted(w, 0, 1, 1)),
    Attack(checks.certified, NOT_CERTIFIED, "for another manifest", lambda w: voted(w, 0, 1, 2, manifest=OTHER)),
    Attack(checks.certified, NOT_CERTIFIED, "for another number", lambda w: voted(w, 0, 1, 2, opening=2)),
    Attack(checks.certified, WRONG_EPOCH, "of another epoch", lambda w: voted(w, 0, 1, 2, epoch=2)),
    Attack(checks.certified, WRONG_TASK, "of another task", lambda w: voted(w, 0, 1, 2, task_hash=OTHER)),
    Attack(checks.certified, NOT_ADDRESSED, "of a stranger", lambda w: voted(w, 0, 1, 2, holder="eve")),
    Attack(
        checks.certified,
        BAD_SIGNATURE,
        "forged by the server",
        lambda w: voted(w, 0, 1, 2, signer=w.server.key),
    ),
    Attack(
        checks.certified,
        BAD_SIGNATURE,
        "by one holder in the names of all",
        lambda w: voted(w, 0, 1, 2, signer=w.committee[0].key),
    ),
]


def test_every_rule_has_an_attack_that_it_alone_stops() -> None:
    alone = {attack.rule for attack in ATTACKS if attack.also is None}
    lacking = [rule.__name__ for rule in EVERY_RULE if rule not in alone]
    assert not lacking, f"no Attack in ATTACKS that this rule alone stops: {', '.join(lacking)}"
    assert alone <= set(EVERY_RULE)
    assert all(len(set(rules)) == len(rules) for rules in STAGES.values())


CASES = [
    pytest.param(stage, attack, id=f"{stage}-{attack.name}")
    for attack in ATTACKS
    for stage, rules in STAGES.items()
    if attack.rule in rules
]


@pytest.mark.parametrize(("stage", "attack"), CASES)
def test_the_rule_stops_the_attack_and_nothing_else_does(world: World, stage: str, attack: Attack) -> None:
    request = at(stage, world, attack.make(world), attack.rule)
    with expect_problem(attack.problem):
        check_all(request, STAGES[stage])
    with expect_problem(attack.problem):
        attack.rule(request)
    check_all(request, attack.others(STAGES[stage]))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.rule in SCREENING], ids=lambda a: a.name)
def test_screening_leaves_single_updates_out_and_refuses_everything_else(world: World, attack: Attack) -> None:
    request = attack.make(world)
    if isinstance(attack.rule, UpdateRule):
        excluded = screen(request)
        assert {one.problem for one in excluded} == {attack.problem.slug}
        assert 0 < len(excluded) < len(request.updates)
        assert {one.update_id for one in excluded} < {header.update_id for header in request.headers}
    else:
        with expect_problem(attack.problem):
            screen(request)
    assert screen(request, attack.others(SCREENING)) == ()


def test_what_several_rules_find_is_left_out_once(world: World) -> None:
    request = knowing(world, ask(world, three(world, created=int(NOW) + 3600, base_version=9)), world.client("carol"))
    (one,) = screen(request)
    assert one.problem == CLOCK_SKEW.slug


def test_a_list_that_comes_after_votes_blocks_none_and_keeps_its_buckets_closed(world: World) -> None:
    """Otherwise holders with the list and holders without it could never agree on the manifest."""
    request = certify(world, stolen_in(world, 1))
    check_all(request, VOTING)
    check_all(request, RELEASING)
    (stolen,) = [h.update_id for h in request.headers if h.client == "client-3"]
    assert revoked_buckets(request) == {1: stolen}


def test_with_noise_a_base_version_may_come_again() -> None:
    """Every sum carries noise of its own, and the plan counts it."""
    noisy = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 4.0, "delta": 1e-5, "epsilon_budget": 100.0}
    world = World(plan={"privacy": noisy})
    check_all(repeated(world))


def test_a_vote_more_than_needed_does_not_hurt() -> None:
    world = World(4, {"agreement": 3})
    for holders in ((0, 1, 2), (3, 1, 0), (0, 1, 2, 3)):
        check_all(certify(world, ask(world, three(world)), holders), RELEASING)


HONEST: dict[str, Callable[[World], OpeningRequest]] = {
    "plain": lambda w: ask(w, three(w)),
    "exactly our floor": lambda w: ask(w, three(w), min_clients_floor=3),
    "as many as the task allows": lambda w: ask(w, crowd(w, 9)),
    "as many buckets as the task allows": lambda w: split(w, 3, 3),
    "last opening of the budget": lambda w: ask(w, three(w), opening=10),
    "at the same moment as the one before": lambda w: ask(w, three(w), ledger_view=replace(FRESH, formed=int(NOW))),
    "a server's clock ahead by the allowance": lambda w: ask(w, three(w), formed=int(NOW) + CLOCK_SKEW_SECONDS),
    "as old as allowed": lambda w: ask(w, three(w), now=NOW + LIFETIME),
    "an update as old as allowed": lambda w: ask(w, three(w, created=int(NOW) - LIFETIME)),
    "as stale as allowed, and as new as the model": lambda w: ask(
        w, [w.update(n, base_version=v) for n, v in (("a", 1), ("b", 2), ("c", 3))], model_version=3
    ),
    "the model stands still": lambda w: ask(w, three(w), ledger_view=replace(FRESH, model_version=0)),
    "clock ahead by the allowance": lambda w: ask(w, three(w, created=int(NOW) + CLOCK_SKEW_SECONDS)),
    "somebody else was revoked": lambda w: knowing(w, ask(w, three(w)), w.client("eve")),
    "the last second of a list": lambda w: knowing(w, ask(w, three(w)), age=DAY - 1),
    "a list where one is needed": lambda w: replace(knowing(w, ask(w, three(w))), require_revocations=True),
    "a retry": lambda w: (lambda r: replace(r, ledger_view=replace(FRESH, voted=r.manifest_hash)))(ask(w, three(w))),
    "a retry long after": lambda w: (
        lambda r: replace(r, now=NOW + 2 * LIFETIME, ledger_view=replace(FRESH, voted=r.manifest_hash))
    )(ask(w, three(w))),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("make", HONEST.values(), ids=[name.replace(" ", "_") for name in HONEST])
def test_an_honest_request_passes_every_rule(world: World, make: Callable[[World], OpeningRequest], stage: str) -> None:
    request = at(stage, world, make(world))
    check_all(request, STAGES[stage])
    assert screen(request) == ()


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_headers_is_refused_whatever_the_rules(world: World, count: int) -> None:
    updates = [*three(world), world.update("dave")]
    request = ask(world, updates[:3])
    given = (*request.updates, updates[3])[:count]
    with expect_problem(MANIFEST_MISMATCH):
        check_all(replace(request, updates=given), ())


@pytest.mark.parametrize("token", ["", "a.b.c", "no jws"])
def test_what_is_no_manifest_is_malformed(world: World, token: str) -> None:
    with expect_problem(MALFORMED):
        check_all(replace(ask(world, three(world)), manifest_token=token))


def test_a_header_that_does_not_parse_is_refused(world: World) -> None:
    request = ask(world, three(world))
    broken = SignedUpdate("x.y.z", request.updates[0].credential)
    with expect_problem(MALFORMED):
        check_all(replace(request, updates=(broken, *request.updates[1:])))


def test_another_kind_of_message_is_no_manifest(world: World) -> None:
    with expect_problem(UNKNOWN_FIELD, "Manifest"):
        check_all(replace(ask(world, three(world)), manifest_token=world.server.credential))
