"""Which choice of key holders' shares opens a bucket: pure, given what tries one (docs/adr/0025)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from he_protocol.errors import ProblemError
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.scheme import DecryptBlock
from he_protocol.sharing import Resolution, Sharing


@dataclass(frozen=True)
class Candidate:
    """A sum that could be one of honest updates: what opens it, its weight, and the SHA-256 of its integers."""

    decrypt_block: DecryptBlock
    weight: float
    digest: bytes


@dataclass(frozen=True)
class Settled:
    """The sum that is believed, and the choice of shares that opens it."""

    candidate: Candidate
    choice: Resolution


@dataclass(frozen=True)
class Unsettled:
    """No sum is believed. `final`: whatever other holders say, none will be."""

    refusal: ProblemError
    final: bool


def settle(
    sharing: Sharing,
    found: Sequence[Resolution],
    attempt: Callable[[Resolution], Candidate],
    *,
    heard: Collection[int],
    binding: bool,
    last: bool,
) -> Settled | Unsettled:
    """Try the choices (best supported first) and believe a sum, if one stands out.

    A plausible choice of which it is certain that honest holders made it is believed. Of the others one is if no other
    opens to another plausible sum, and if either shares of the scheme are `binding` or nobody will answer any more
    (`last`). Two plausible sums are a contradiction: nothing is picked among them.

    heard: the holders that answered for this bucket. `attempt` raises `combine-refused` for a choice that cannot be
    right.
    """
    plausible: dict[bytes, Settled] = {}
    reasons: list[ProblemError] = []
    final = False
    for choice in found:
        certain = choice.certain(sharing)
        try:
            candidate = attempt(choice)
        except ProblemError as refusal:
            if refusal.problem != COMBINE_REFUSED:
                raise
            reasons.append(refusal)
            final |= certain  # what honest holders know of this bucket opens to no sum: a client lied
            continue
        plausible.setdefault(candidate.digest, Settled(candidate, choice))
        if certain:
            break
    settled = list(plausible.values())
    if settled and (settled[0].choice.certain(sharing) or (len(settled) == 1 and (binding or last))):
        return settled[0]
    return Unsettled(_reason(sharing, settled, reasons, heard), final and not settled)


def _reason(
    sharing: Sharing, settled: Sequence[Settled], reasons: Sequence[ProblemError], heard: Collection[int]
) -> ProblemError:
    if len(settled) > 1:
        return ProblemError(COMBINE_REFUSED, f"{len(settled)} choices of shares open to different sums, each plausible")
    if settled:
        agree = len(settled[0].choice.support)
        return ProblemError(
            COMBINE_REFUSED,
            "too few key holders agree: a wrong share of this scheme need not show",
            expected=2 * sharing.threshold - 1,
            got=agree,
        )
    if reasons:
        return reasons[0]
    if len(heard) < sharing.threshold:
        return ProblemError(
            COMBINE_REFUSED, "too few key holders released subshares", expected=sharing.threshold, got=len(heard)
        )
    return ProblemError(COMBINE_REFUSED, f"key holders contradict each other: no {sharing.threshold} of them agree")
