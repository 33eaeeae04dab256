"""Honest and lying key holders before a server that shows each of them what it likes, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Literal, Protocol

from he_holder.ledger import Ledger
from he_holder.request import LedgerView, OpeningRequest
from he_holder.rules import RELEASING, VOTING, Rule, check_all
from he_protocol.committee import Committee, parse_committee
from he_protocol.errors import ProblemError
from he_protocol.messages import SignedUpdate
from tests.support.openings import ask, vote
from tests.support.parties import World

COMMITTEES = ("2/4/3", "3/7/5", "3/5/4")
CLIENTS, LEAST, OPENINGS = 8, 2, 2
"""Of the task: clients that have sent an update, the fewest of a sum, opening numbers."""

Act = Literal["vote", "lost vote", "release"]
"""What a holder is asked for; a lost vote is one that it recorded and then crashed."""


@dataclass(frozen=True)
class Step:
    act: Act
    holder: int
    manifest: int


@dataclass(frozen=True)
class Asked:
    """A manifest as the server makes it: a number, and the clients whose updates are in it."""

    number: int
    clients: frozenset[int]


@cache
def committee_world(text: str) -> tuple[World, tuple[SignedUpdate, ...]]:
    made = parse_committee(text)
    plan = {"threshold": made.threshold, "agreement": made.agreement}
    world = World(made.holders, plan | {"min_clients": LEAST, "max_openings": OPENINGS})
    return world, tuple(world.update(f"client-{i}") for i in range(CLIENTS))


@cache
def request_for(text: str, asked: Asked) -> OpeningRequest:
    world, updates = committee_world(text)
    return ask(world, [updates[i] for i in sorted(asked.clients)], number=asked.number, min_clients_floor=LEAST)


class Memory(Protocol):
    """What an honest holder remembers: a ledger, or something that behaves like one."""

    async def decide(self, request: OpeningRequest, rules: tuple[Rule, ...] = VOTING) -> OpeningRequest: ...


@dataclass
class Notes:
    """A ledger in memory."""

    voted: dict[int, OpeningRequest] = field(default_factory=dict)

    async def decide(self, request: OpeningRequest, rules: tuple[Rule, ...] = VOTING) -> OpeningRequest:
        number = request.manifest.opening
        others = [other for at, other in self.voted.items() if at != number]
        lower = [other.manifest for other in others if other.manifest.opening < number]
        history = LedgerView(
            voted=self.voted[number].manifest_hash if number in self.voted else None,
            opened_before=frozenset(h.update_id for other in others for h in other.headers),
            repeated=frozenset((h.client, h.base_version) for other in others for h in other.headers),
            model_version=max((manifest.model_version for manifest in lower), default=0),
            formed=max((manifest.formed for manifest in lower), default=0),
        )
        check_all(replace(request, ledger_view=history), rules)
        self.voted.setdefault(number, request)
        return request


@dataclass
class Court:
    """A committee whose first `liars` holders sign and release whatever the server likes."""

    text: str
    liars: int
    remembers: Callable[[], Memory] = Notes
    voting: tuple[Rule, ...] = VOTING
    releasing: tuple[Rule, ...] = RELEASING
    votes: dict[Asked, dict[int, str]] = field(default_factory=dict)
    released: dict[Asked, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memories = {holder: self.remembers() for holder in self.honest}

    @property
    def committee(self) -> Committee:
        return parse_committee(self.text)

    @property
    def honest(self) -> range:
        return range(self.liars, self.committee.holders)

    async def play(self, shown: Sequence[Asked], steps: Sequence[Step]) -> None:
        for step in steps:
            try:
                await self.step(step.act, step.holder, shown[step.manifest])
            except ProblemError:
                continue

    async def step(self, act: Act, holder: int, asked: Asked) -> None:
        """One request to one honest holder. Raises its refusal."""
        request = request_for(self.text, asked)
        if act == "release":
            votes = tuple(self.votes_for(asked).values())
            await self.memories[holder].decide(replace(request, votes=votes), self.releasing)
            self.released.setdefault(asked, set()).add(holder)
            return
        await self.memories[holder].decide(request, self.voting)
        if act == "vote":
            world, _ = committee_world(self.text)
            self.votes.setdefault(asked, {})[holder] = vote(world, holder, request)

    def votes_for(self, asked: Asked) -> dict[int, str]:
        """Those of honest holders, and of every liar."""
        world, _ = committee_world(self.text)
        request = request_for(self.text, asked)
        lies = {liar: vote(world, liar, request) for liar in range(self.liars)}
        return lies | self.votes.get(asked, {})

    def certified(self, shown: Sequence[Asked]) -> list[Asked]:
        return [asked for asked in dict.fromkeys(shown) if len(self.votes_for(asked)) >= self.committee.agreement]

    def opened(self, shown: Sequence[Asked]) -> list[Asked]:
        """The sums that the server reads: liars release anything."""
        threshold = self.committee.threshold
        return [a for a in dict.fromkeys(shown) if self.liars + len(self.released.get(a, ())) >= threshold]


def conflicts(found: Sequence[Asked]) -> list[tuple[Asked, Asked]]:
    """Pairs that share an update or a number."""
    return [(a, b) for a, b in combinations(found, 2) if a.number == b.number or a.clients & b.clients]


def ledgers(opened: Sequence[Ledger]) -> Callable[[], Memory]:
    """One ledger after the other, for `Court.remembers`."""
    left: Iterator[Ledger] = iter(opened)
    return lambda: next(left)
