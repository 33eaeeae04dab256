"""The three things that a server asks a holder for, over real HTTP: a screening, a vote, a share."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from aiohttp import web

from he_holder.holder import KeyHolder
from he_holder.opening import Openings
from he_holder.request import OpeningRequest
from he_protocol import documents, paths
from he_protocol.config import TensorSpec
from he_protocol.identity.jws import SigningKey, verify
from he_protocol.messages import Exclusion, FailedBucket, Message, Objection, Screening, Share, Vote
from he_protocol.problems import (
    BAD_SIGNATURE,
    DIGEST_MISMATCH,
    INTERNAL,
    MANIFEST_MISMATCH,
    NOT_CERTIFIED,
    NUMBER_USED,
    REVOKED_KEY,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    UPDATE_OPENED_BEFORE,
    WRONG_STATE,
)
from he_testing.fake_server import FakeServer, key_bodies, problem
from he_testing.problems import expect_problem
from tests.support.holders import holder_of, line_to, open_round
from tests.support.openings import Sent, ask, certify, send_kahe, share
from tests.support.parties import NOW, World, random_integers
from tests.support.poison import unopenable
from tests.support.revocations import revoked

D = 40
LIFETIME = 30 * 86_400
M = TypeVar("M", bound=Message)


@dataclass
class Scene:
    """Holder 0 of a committee of four, and a server with a round of five updates."""

    world: World
    server: FakeServer
    holder: KeyHolder
    sent: list[Sent]

    def __post_init__(self) -> None:
        self.openings = Openings(self.holder, self.world.task)

    def offer(self, sent: list[Sent], **changes: Any) -> OpeningRequest:
        request = ask(self.world, [one.update for one in sent], **changes)
        self.server.offer(request, key_bodies([(one.update, one.body["shares"]) for one in sent]))
        return request

    async def serve(self, number: int = 1) -> documents.Stage:
        async with line_to(self.server.url, self.holder) as line:
            return await self.openings.serve(number, line)

    def said(self, kind: type[M], number: int = 1) -> M:
        token = self.server.answers[number, "holder-0", kind.__name__.lower()]
        return verify(token, kind, self.holder.identity.key.public)

    def expected(self, request: OpeningRequest) -> bytes:
        """The share of bucket 0, computed in memory."""
        bodies = {bytes.fromhex(update): body for update, body in self.server.bodies.items()}
        return b"".join(share(self.world, 0, request, bodies).values())

    def rows(self) -> int:
        with closing(sqlite3.connect(self.holder.directory / "ledger.db")) as ledger:
            return int(ledger.execute("SELECT count(*) FROM votes").fetchone()[0])

    def asked(self, path: Callable[[str, int], str], number: int = 1) -> int:
        return self.server.count("GET", path(self.world.task.id, number))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    plan = {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0, "agreement": 3}
    world = World(4, plan, (TensorSpec("w", (D,)),))
    async with (
        FakeServer(world.task, committee=world.committee) as server,
        holder_of(world, 0, tmp_path) as holder,
    ):
        await holder.join(world.task, server.url)
        made = Scene(world, server, holder, [crowd(world, name) for name in "abcde"])
        made.offer(made.sent)
        yield made


def crowd(world: World, name: str, **changes: Any) -> Sent:
    return send_kahe(world, name, random_integers(D, ord(name[0]), 1000), **changes)


def expired(world: World) -> Sent:
    """Of a client whose credential had run out when the manifest was formed."""
    world.clients["expired"] = world.authority.party("expired", "client", now=NOW - 10 * 86_400, days=9)
    return crowd(world, "expired")


FAULTY: dict[str, Callable[[World], Sent]] = {
    "digest-mismatch": lambda w: unopenable(w, crowd(w, "x"), 0),
    "stale-update": lambda w: crowd(w, "x", base_version=9),
    "expired-credential": expired,
    "wrong-task": lambda w: crowd(w, "x", task_hash=bytes(32)),
    "clock-skew": lambda w: crowd(w, "x", created=int(NOW) + 3600),
}


@pytest.mark.parametrize("slug", FAULTY)
async def test_screening_names_what_is_of_no_use_and_binds_nothing(scene: Scene, slug: str) -> None:
    bad = FAULTY[slug](scene.world)
    request = scene.offer([*scene.sent, bad])
    before = scene.holder.directory.joinpath("ledger.db").read_bytes()
    assert await scene.serve() == "screen"
    said = scene.said(Screening)
    assert said.excluded == (Exclusion(bad.header.update_id, slug),)
    assert (said.round, said.manifest, said.holder) == (1, request.manifest_hash, "holder-0")
    assert (said.seen_opening, said.seen_version) == (0, 0)
    assert scene.holder.directory.joinpath("ledger.db").read_bytes() == before
    assert scene.server.put_shares == []


async def test_screening_names_what_the_ledger_and_the_revocation_list_know(scene: Scene) -> None:
    await scene.holder.ledger.decide(
        ask(scene.world, [one.update for one in scene.sent[:3]], number=1, model_version=0)
    )
    later = [crowd(scene.world, name) for name in "pqrs"]
    scene.offer([*later, scene.sent[0]], number=2)
    thief = scene.world.client("s").credential
    scene.server.revocations = revoked(scene.world.authority.key, thief, now=NOW).token
    await scene.serve(2)
    said = scene.said(Screening, 2)
    assert {one.update_id: one.problem for one in said.excluded} == {
        scene.sent[0].header.update_id: UPDATE_OPENED_BEFORE.slug,
        later[3].header.update_id: REVOKED_KEY.slug,
    }
    assert said.seen_opening == 1


async def test_what_a_server_serves_in_the_place_of_a_key_part_is_screened_out(scene: Scene) -> None:
    victim = scene.sent[2].header.update_id
    scene.server.bodies[victim.hex()] = scene.sent[1].body["shares"]
    await scene.serve()
    assert scene.said(Screening).excluded == (Exclusion(victim, DIGEST_MISMATCH.slug),)


async def test_what_no_leaving_out_would_mend_is_refused_with_an_objection(scene: Scene) -> None:
    request = scene.offer(scene.sent[:2])
    with expect_problem(TOO_FEW_CLIENTS):
        await scene.serve()
    said = scene.said(Objection)
    assert (said.problem, said.manifest, said.round) == ("too-few-clients", request.manifest_hash, 1)
    assert "at least 3" in said.detail
    assert [one.problem for one in await scene.holder.ledger.refusals(scene.world.task.hash)] == ["too-few-clients"]


async def test_an_objection_that_is_not_heard_hides_nothing(scene: Scene) -> None:
    scene.offer(scene.sent[:2])
    scene.server.replaced["PUT", paths.answer_path(scene.world.task.id, 1, "holder-0")] = problem(INTERNAL)
    with expect_problem(TOO_FEW_CLIENTS):
        await scene.serve()
    assert [one.problem for one in await scene.holder.ledger.refusals(scene.world.task.hash)] == ["too-few-clients"]


async def test_a_long_refusal_is_cut_in_the_objection_and_whole_in_the_ledger(scene: Scene) -> None:
    scene.offer(scene.sent, signer=SigningKey.generate())
    with expect_problem(BAD_SIGNATURE):
        await scene.serve()
    assert len(scene.said(Objection).detail) <= 2000


async def test_a_vote_is_durable_before_it_is_sent(scene: Scene) -> None:
    found: list[int] = []

    async def look(_: web.Request) -> None:
        found.append(scene.rows())

    scene.server.on_answer = look
    await scene.serve()
    assert await scene.serve() == "vote"
    assert found == [0, 1]
    vote = scene.said(Vote)
    assert (vote.opening, vote.holder, vote.epoch) == (1, "holder-0", 1)
    assert scene.server.put_shares == []


async def test_a_crash_between_vote_and_its_sending_leaves_the_holder_bound(scene: Scene, tmp_path: Path) -> None:
    """It comes back, and the server shows it another manifest of the same number; then the first again."""
    first = scene.offer(scene.sent)
    scene.server.stages[1] = "vote"
    path = ("PUT", paths.answer_path(scene.world.task.id, 1, "holder-0"))
    scene.server.replaced[path] = problem(INTERNAL)
    with expect_problem(INTERNAL):
        await scene.serve()
    await scene.holder.ledger.close()
    del scene.server.replaced[path]
    async with holder_of(scene.world, 0, tmp_path) as again:
        scene.holder, scene.openings = again, Openings(again, scene.world.task)
        scene.offer(scene.sent[:4])
        with expect_problem(NUMBER_USED):
            await scene.serve()
        assert (1, "holder-0", "vote") not in scene.server.answers
        scene.offer(scene.sent)
        scene.server.manifests[1] = first.manifest_token
        scene.server.heads[1] = first.updates
        assert await scene.serve() == "vote"
        assert scene.said(Vote).manifest == first.manifest_hash


async def test_a_share_needs_a_certificate(scene: Scene) -> None:
    """Two votes of three: nothing leaves, and a holder that has not voted is not bound."""
    request = scene.offer(scene.sent)
    scene.server.stages[1] = "release"
    scene.server.votes[1] = certify(scene.world, request, (1, 2)).votes
    with expect_problem(NOT_CERTIFIED):
        await scene.serve()
    assert (scene.rows(), scene.server.put_shares) == (0, [])
    assert scene.said(Objection).problem == NOT_CERTIFIED.slug
    scene.server.votes[1] = certify(scene.world, request, (1, 2, 3)).votes
    assert await scene.serve() == "release"
    assert scene.server.shares[1, "holder-0"][1] == scene.expected(request)


async def test_a_holder_that_did_not_vote_releases_and_records_it_as_its_vote(scene: Scene) -> None:
    request = scene.offer(scene.sent)
    scene.server.stages[1] = "release"
    assert await scene.serve() == "release"
    (vote,) = await scene.holder.ledger.votes(scene.world.task.hash)
    assert (vote.opening, vote.manifest_hash, vote.settled) == (1, request.manifest_hash, NOW)
    scene.offer(scene.sent[:4], number=2)
    scene.server.stages[2] = "vote"
    with expect_problem(UPDATE_OPENED_BEFORE):
        await scene.serve(2)


async def test_sums_of_the_screening_are_used_when_nothing_was_lost(scene: Scene) -> None:
    bad = unopenable(scene.world, crowd(scene.world, "x"), 0)
    scene.offer([*scene.sent, bad])
    await scene.serve()
    final = scene.offer(scene.sent)
    assert [await scene.serve(), await scene.serve()] == ["vote", "release"]
    assert scene.asked(paths.key_sections_path) == scene.asked(paths.heads_path) == 1  # six updates, of which five stay
    assert scene.server.shares[1, "holder-0"][1] == scene.expected(final)


async def test_a_manifest_that_has_lost_updates_is_added_up_again(scene: Scene) -> None:
    """The others have found an update of no use that opens here: it must not be in our share."""
    await scene.serve()
    final = scene.offer(scene.sent[:4])
    assert [await scene.serve(), await scene.serve()] == ["vote", "release"]
    assert scene.asked(paths.key_sections_path) == 2
    assert scene.server.shares[1, "holder-0"][1] == scene.expected(final)


async def test_a_second_header_under_the_same_id_is_added_up_again(scene: Scene) -> None:
    """A client that works with the server signs two bodies under one id, one for screening and one for release."""
    await scene.serve()
    other = send_kahe(scene.world, "e", random_integers(D, 99, 1000))
    again = Sent(
        other.integers,
        other.body,
        scene.world.update("e", other.body, update_id=scene.sent[4].header.update_id),
    )
    scene.offer([*scene.sent[:4], again])
    assert [await scene.serve(), await scene.serve()] == ["vote", "release"]
    said = verify(scene.server.shares[1, "holder-0"][0], Share, scene.holder.identity.key.public)
    # The envelopes were made for another id: the cached sum would have hidden that.
    assert said.failed == (FailedBucket(0, again.header.update_id, DIGEST_MISMATCH.slug),)


async def test_a_manifest_that_changes_between_vote_and_release(scene: Scene) -> None:
    """With a certificate or without, our vote stands."""
    await scene.serve()
    await scene.serve()
    other = scene.offer(scene.sent[:4])
    with expect_problem(NUMBER_USED):
        await scene.serve()
    scene.server.votes[1] = certify(scene.world, other, (1, 2, 3)).votes
    with expect_problem(NUMBER_USED):
        await scene.serve()
    assert scene.server.put_shares == []


@pytest.mark.parametrize("stage", ["vote", "release"])
async def test_other_heads_than_the_manifests(scene: Scene, stage: documents.Stage) -> None:
    request = scene.offer(scene.sent)
    scene.server.stages[1] = stage
    scene.server.heads[1] = (*request.updates[:4], crowd(scene.world, "z").update)
    with expect_problem(MANIFEST_MISMATCH):
        await scene.serve()
    assert (scene.rows(), scene.server.put_shares) == (0, [])
    scene.server.heads[1] = request.updates[::-1]  # by their digests, in whatever order
    assert await scene.serve() == stage


async def test_other_key_parts_at_release(scene: Scene) -> None:
    scene.server.stages[1] = "release"
    request = scene.offer(scene.sent)
    one, two, *_ = (header.update_id.hex() for header in request.headers)
    scene.server.bodies[one] = scene.server.bodies[two]
    with expect_problem(DIGEST_MISMATCH, one):
        await scene.serve()
    assert scene.server.put_shares == []


async def test_a_client_that_is_revoked_between_votes_keeps_its_bucket_closed(tmp_path: Path) -> None:
    plan = {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0, "agreement": 3, "buckets": 2}
    world = World(4, plan | {"min_clients": 2}, (TensorSpec("w", (D,)),))
    async with FakeServer(world.task, committee=world.committee) as server, holder_of(world, 0, tmp_path) as holder:
        await holder.join(world.task, server.url)
        scene = Scene(world, server, holder, [crowd(world, name) for name in "abcd"])
        scene.offer(scene.sent, buckets={"c": 1, "d": 1})
        assert [await scene.serve(), await scene.serve()] == ["screen", "vote"]
        server.revocations = revoked(world.authority.key, world.client("d").credential, now=NOW).token
        assert await scene.serve() == "release"
        said = verify(server.shares[1, "holder-0"][0], Share, holder.identity.key.public)
        assert [(one.bucket, one.problem) for one in said.failed] == [(1, REVOKED_KEY.slug)]
        assert {entry.bucket for entry in said.vectors} == {0}


async def test_a_round_that_went_on_without_us_is_no_evidence(scene: Scene) -> None:
    await scene.serve()
    scene.server.replaced["PUT", paths.answer_path(scene.world.task.id, 1, "holder-0")] = problem(WRONG_STATE)
    with expect_problem(WRONG_STATE):
        await scene.serve()
    assert await scene.holder.ledger.refusals(scene.world.task.hash) == []
    (vote,) = await scene.holder.ledger.votes(scene.world.task.hash)
    assert vote.settled == NOW


async def test_the_next_round_begins_afresh(scene: Scene) -> None:
    async with line_to(scene.server.url, scene.holder) as line:
        await open_round(scene.holder, scene.world.task, 1, line)
    second = [crowd(scene.world, name) for name in "pqr"]
    request = scene.offer(second, number=2)
    assert [await scene.serve(2) for _ in range(3)] == ["screen", "vote", "release"]
    assert scene.said(Screening, 2).seen_opening == 1
    assert scene.server.shares[2, "holder-0"][1] == scene.expected(request)


async def test_a_model_that_went_back_is_named_with_what_was_seen(scene: Scene) -> None:
    """A server restored from an older backup: what holders say is how its operator finds the way on."""
    seen = ask(scene.world, [one.update for one in scene.sent], opening=4, model_version=2)
    await scene.holder.ledger.decide(replace(seen, now=NOW))
    scene.offer([crowd(scene.world, name) for name in "pqr"], number=2, opening=5, model_version=1)
    with expect_problem(STALE_UPDATE, "went back"):
        await scene.serve(2)
    said = scene.said(Objection, 2)
    assert (said.problem, said.seen_opening, said.seen_version) == ("stale-update", 4, 2)


def test_answers_say_whose_word_they_are() -> None:
    """Every answer names task, epoch, manifest and holder: none can stand in another's place."""
    for kind in (Screening, Vote, Objection):
        names = {field.name for field in msgspec.structs.fields(kind)}
        assert {"task_hash", "epoch", "manifest", "holder"} <= names
