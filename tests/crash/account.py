"""The account: what became of every update, by the parties' own records. Pure: evidence in, findings out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from he_protocol.documents import RoundState

Kind = Literal[
    "lost",  # acknowledged, and missing in the sum of its round, or unknown to the server
    "twice",  # more often in the sums than its round's state allows
    "stuck",  # a round that did not end, or an update that was never sent
    "unreported",  # its round failed without a reason
    "unknown",  # in a sum, acknowledged to nobody
    "garbled",  # a sum that is not one of so many one-hot updates
    "version",  # model versions that do not follow from the published rounds, one each
    "forked",  # several manifests of one round in the holders' ledgers
    "refused",  # a manifest of an honest server, refused by an honest holder
    "orphan",  # bytes that no round needs any longer
]
ERROR_DEVIATIONS = 8.0


@dataclass(frozen=True)
class UpdateEvidence:
    """One acknowledged update: `coordinate` from its client, the rest as the server answers. Round 0: unknown to it."""

    update_id: str
    coordinate: int
    round: int
    state: RoundState | None
    failure: str


@dataclass(frozen=True)
class RoundEvidence:
    """One round as the server answers.

    ones: how often each coordinate is in the published sum. error: the largest distance of a
    coordinate from a whole number of ones, in standard deviations of the scheme's own error.
    """

    number: int
    state: RoundState
    updates: int
    version: int = 0
    failure: str = ""
    ones: Mapping[int, int] = field(default_factory=dict)
    error: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """Everything that is left when the killing has stopped.

    updates: those with a receipt; unsent: sealed ones without, and whose, although their clients had time to send them.
    manifests: (holder, round, manifest hash) of every accepted manifest. refusals: what holders refused, in words.
    orphans: blobs that a sweep left although no round needs any.
    """

    updates: tuple[UpdateEvidence, ...]
    rounds: tuple[RoundEvidence, ...]
    unsent: tuple[str, ...] = ()
    manifests: tuple[tuple[str, int, str], ...] = ()
    refusals: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One broken promise."""

    kind: Kind
    what: str


def account(evidence: Evidence) -> list[Finding]:
    """Every broken promise that the evidence shows; empty when nothing was lost, repeated or stuck."""
    return [*_updates(evidence), *_rounds(evidence), *_versions(evidence), *_rest(evidence)]


def _updates(evidence: Evidence) -> Iterator[Finding]:
    """Every acknowledged update is in the sum of its round and nowhere else, or its round's failure is reported."""
    sums: dict[int, Counter[int]] = defaultdict(Counter)
    for round_ in evidence.rounds:
        for coordinate, count in round_.ones.items():
            sums[coordinate][round_.number] += count
    for update in evidence.updates:
        name = f"update {update.update_id}, round {update.round} {update.state}"
        wanted = Counter({update.round: 1} if update.state == "published" else {})
        found = sums.pop(update.coordinate, Counter())
        if not update.round or wanted - found:
            yield Finding("lost", f"{name}: in the sums of rounds {sorted(found.elements())}")
        if found - wanted:
            yield Finding("twice", f"{name}: in the sums of rounds {sorted(found.elements())}")
        if update.round and update.state not in {"published", "failed"}:
            yield Finding("stuck", name)
        if update.state == "failed" and not update.failure:
            yield Finding("unreported", name)
    for coordinate, found in sums.items():
        yield Finding("unknown", f"coordinate {coordinate}: in the sums of rounds {sorted(found.elements())}")


def _rounds(evidence: Evidence) -> Iterator[Finding]:
    """All rounds but the newest have ended, and a published sum is one of as many ones as the round has updates."""
    newest = max(round_.number for round_ in evidence.rounds)
    for round_ in evidence.rounds:
        name = f"round {round_.number} {round_.state}, {round_.updates} updates"
        ended = round_.state in {"published", "failed"}
        if not ended and (round_.number != newest or round_.updates):
            yield Finding("stuck", name)
        if round_.state == "failed" and not round_.failure:
            yield Finding("unreported", name)
        if round_.state == "published" and sum(round_.ones.values()) != round_.updates:
            yield Finding("garbled", f"{name}: the sum has {sum(round_.ones.values())}")
        if round_.error > ERROR_DEVIATIONS:
            yield Finding("garbled", f"{name}: off by {round_.error:.1f} deviations")


def _versions(evidence: Evidence) -> Iterator[Finding]:
    versions = sorted(round_.version for round_ in evidence.rounds if round_.state == "published")
    if versions != list(range(1, len(versions) + 1)):
        yield Finding("version", f"published: {versions}")


def _rest(evidence: Evidence) -> Iterator[Finding]:
    """Everything was sent; one manifest per round in all ledgers; no refusals, no forgotten bytes."""
    yield from (Finding("stuck", f"update {name} was never sent") for name in evidence.unsent)
    hashes: dict[int, set[str]] = defaultdict(set)
    for _, number, manifest in evidence.manifests:
        hashes[number].add(manifest)
    seen = Counter((holder, number) for holder, number, _ in evidence.manifests)
    for number in sorted(hashes):
        if len(hashes[number]) > 1 or any(count > 1 for (_, n), count in seen.items() if n == number):
            yield Finding("forked", f"round {number}: {len(hashes[number])} manifests")
    yield from (Finding("refused", text) for text in evidence.refusals)
    yield from (Finding("orphan", name) for name in evidence.orphans)
