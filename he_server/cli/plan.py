"""`he-server plan`: which profile, scale and value range a task should take, and what they cost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from he_party import console
from he_party.console import OutputFormat
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_PLAN, SUM_COULD_WRAP

if TYPE_CHECKING:
    from he_protocol.committee import Committee
    from he_protocol.privacy.accountant import Spent
    from he_protocol.privacy.plan import PrivacyPlan
    from he_protocol.sum_bounds import Candidate

MOST = 2**53
"""What a number in a task's configuration can be."""


def plan(
    parameters: Annotated[int, typer.Option(min=1, max=MOST, help="Model parameters, d.")],
    clients: Annotated[int, typer.Option(min=1, max=MOST, help="Most clients in one round.")],
    min_clients: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Fewest clients in one bucket; default: an equal part of them.")
    ] = None,
    unit: Annotated[Literal["record", "client", "none"], typer.Option(help="What DP protects.")] = "client",
    clip_norm: Annotated[float, typer.Option(min=0, help="L2 bound of what is clipped.")] = 1.0,
    noise: Annotated[float, typer.Option(min=0, help="Noise multiplier on the sum.")] = 1.0,
    sampling_rate: Annotated[float, typer.Option(min=0, max=1, help="Poisson rate, unit record only.")] = 1.0,
    delta: Annotated[float, typer.Option(min=0, max=1, help="Delta of the DP promise.")] = 1e-5,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="Rounds to open in an epoch.")] = 100,
    buckets: Annotated[int, typer.Option(min=1, max=MOST, help="Sums that a round is opened in.")] = 1,
    committee: Annotated[
        str, typer.Option(help="Key holders: threshold/holders/agreement, that open, that there are, that must vote.")
    ] = "2/4/3",
    value_range: Annotated[
        float | None, typer.Option(min=0, help="Largest coordinate of an update; unit client has a default.")
    ] = None,
    rotation: Annotated[bool, typer.Option("--rotation", help="Updates are rotated: a smaller range does.")] = False,
    accuracy: Annotated[float | None, typer.Option(min=0, help="Acceptable error of the mean (std).")] = None,
    form: OutputFormat = "text",
) -> None:
    """Recommend a profile, scale and value range; refuse what would wrap."""
    from he_protocol.committee import parse_committee
    from he_protocol.config import check_fewest
    from he_protocol.privacy.plan import PrivacyPlan, spent
    from he_protocol.sharing import Sharing
    from he_protocol.sum_bounds import plan_sums

    privacy = PrivacyPlan("none", clip_norm)
    if unit != "none":
        privacy = PrivacyPlan(unit, clip_norm, noise, sampling_rate, delta, epsilon_budget=sys.float_info.max)
    privacy.check()
    fewest = min_clients or clients // buckets
    if buckets * fewest > clients:
        raise ProblemError(BAD_PLAN, "buckets * min_clients exceeds clients", got=f"{buckets * fewest} > {clients}")
    check_fewest(fewest)
    holders = parse_committee(committee)
    sharing = Sharing(holders.holders, holders.threshold)
    offers = plan_sums(
        privacy,
        length=parameters,
        min_clients=fewest,
        max_clients=clients,
        sharing=sharing,
        openings=rounds * buckets,
        value_range=value_range,
        accuracy=accuracy,
        rotation=rotation,
    )
    cost = spent(privacy, rounds) if privacy.noisy else None
    if form == "json":
        console.show_json(_document(offers, cost, privacy, holders))
    else:
        _show(offers, cost, privacy, rounds, holders)
    if offers[0].refusal:
        raise ProblemError(SUM_COULD_WRAP, "no profile fits", got=f"{offers[0].profile}: {offers[0].refusal}")


def _document(
    offers: list[Candidate], cost: Spent | None, privacy: PrivacyPlan, holders: Committee
) -> dict[str, object]:
    return {
        "recommended": offers[0] if not offers[0].refusal else None,
        "epsilon": cost.epsilon if cost else None,
        "method": cost.method if cost else "none",
        "neighbours": privacy.neighbours,
        "committee": {
            "holders": holders.holders,
            "threshold": holders.threshold,
            "agreement": holders.agreement,
            "f": holders.colluders,
        },
        "profiles": offers,
    }


def _show(offers: list[Candidate], cost: Spent | None, privacy: PrivacyPlan, rounds: int, holders: Committee) -> None:
    from he_protocol.committee import describe

    names = ["profile", "scale", "value range", "bytes/param", "error of mean", "DP noise of mean", "verdict"]
    rows = []
    for number, offer in enumerate(offers):
        verdict = offer.refusal or ("recommended" if number == 0 else "fits")
        numbers = (offer.scale, offer.value_range, offer.bytes_per_parameter, offer.mean_error, offer.mean_noise)
        rows.append([offer.profile, *(f"{value:.4g}" for value in numbers), verdict])
    console.show_table(names, rows)
    if cost is None:
        console.out.print(f"no differential privacy after {rounds} opened rounds")
    else:
        console.out.print(
            f"{privacy.unit}-level epsilon {cost.epsilon:.3f} at delta {privacy.delta:g} after {rounds} opened rounds\n"
            f"neighbours: {privacy.neighbours}; accountant: {cost.method}"
        )
    console.out.print(describe(holders))
