"""A key holder that lies to the server: what would be published, and why it is not."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from he_holder.request import OpeningRequest
from he_protocol.config import TensorSpec
from he_protocol.problems import COMBINE_REFUSED, MANIFEST_MISMATCH, WRONG_SHARE
from he_server.rules.committee import Member
from he_server.rules.records import RoundRecord
from he_server.rules.shares import check_share
from he_testing.problems import expect_problem
from tests.support.openings import Sent, answer, ask, combine, key_sections, send_kahe, shares
from tests.support.parties import World, random_integers

D = 2048
"""Fills its polynomial: no padding tells that a sum is noise."""
NOISE = 1000


@pytest.fixture(scope="module")
def made() -> World:
    return World(3, {"scheme": "kahe", "profile": "kahe-30", "scale": 16.0}, (TensorSpec("w", (D,)),))


def played(made: World, number: int) -> tuple[OpeningRequest, list[Sent]]:
    """A round of three, of the same clients every time."""
    sent = [send_kahe(made, f"client-{i}", random_integers(D, 10 * number + i, 100)) for i in range(3)]
    return ask(made, [one.update for one in sent], number=number), sent


def record(request: OpeningRequest) -> RoundRecord:
    """The round as the server has it while it waits for shares."""
    hashed = request.manifest_hash.hex()
    return RoundRecord(
        1, request.task.id, request.manifest.round, "opening", 3, 0.0, 0.0, 0.0, 0.0, request.manifest_token, hashed, 0,
        "", "", {}, 0, 0.0, (), request.manifest.opening, (), (), 0,
    )  # fmt: skip


def test_an_old_share_in_a_new_rounds_place(made: World) -> None:
    """Off: of one holder it costs the round. Of a quorum it is a key of as many clients, and noise opens."""
    (old, before), (new, sent) = played(made, 1), played(made, 2)
    replayed, _ = answer(made, 0, old, key_sections(made, before))
    member = Member(0, made.task.config.committee.holders[0])
    with expect_problem(MANIFEST_MISMATCH):
        check_share(made.task, record(new), member, replace(replayed, round=2))
    honest = shares(made, 0, new, sent) | shares(made, 1, new, sent)
    wanted = combine(made, honest, sent)
    with expect_problem(COMBINE_REFUSED):
        combine(made, honest | shares(made, 0, old, before), sent)
    off = combine(made, shares(made, 0, old, before) | shares(made, 1, old, before), sent)
    assert np.abs(wanted - np.sum([one.integers for one in sent], axis=0)).max() < NOISE
    assert np.abs(off - wanted).max() > 1000 * NOISE


def test_a_share_without_one_of_its_parts(made: World) -> None:
    new, sent = played(made, 3)
    whole, _ = answer(made, 0, new, key_sections(made, sent))
    member = Member(0, made.task.config.committee.holders[0])
    check_share(made.task, record(new), member, whole)
    with expect_problem(WRONG_SHARE):
        check_share(made.task, record(new), member, replace(whole, vectors=whole.vectors[:-1]))
