"""The ceremony over a bulletin board on real HTTP: honest, interrupted, and lying."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from he_holder.ceremony import run
from he_holder.ceremony.run import Ceremony, silent
from he_holder.holder import EpochSecret, KeyHolder
from he_holder.schemes import ckks, make_dealer
from he_party.board import ServerBoard
from he_party.keyfile import read_private
from he_protocol.arithmetic import residues
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Commitment, Confirmation, Contribution, Message, Reveal, SubshareDigest
from he_protocol.problems import (
    BAD_KEY_FILE,
    BAD_SIGNATURE,
    CEREMONY_CONFLICT,
    COMMITMENT_BROKEN,
    MALFORMED,
    NO_QUORUM,
    NOT_ADDRESSED,
    TOO_LARGE,
    UNREACHABLE,
    WRONG_EPOCH,
    WRONG_TASK,
    ProblemType,
)
from he_protocol.schemes.ckks import CEREMONY
from he_testing.fake_server import FakeServer, Posts, View
from he_testing.problems import expect_problem
from tests.support.holders import holder_of, line_to
from tests.support.parties import World

PHASES = [phase.name for phase in CEREMONY]

COMMON = cache(ckks.common_polynomial)  # type: ignore[attr-defined]  # slow, and the same in every test here
KINDS: dict[str, type[Message]] = {
    "contribution": Contribution,
    "commitment": Commitment,
    "reveal": Reveal,
    "confirmation": Confirmation,
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ckks, "common_polynomial", COMMON)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[FakeServer]:
    async with FakeServer(world.task) as running:
        yield running


async def take_part(
    world: World, server: FakeServer, holder: KeyHolder, patience: float = 20.0, told: list[str] | None = None
) -> bytes:
    progress = told.append if told is not None else silent
    async with line_to(server.url, holder) as line:
        board = ServerBoard(line, world.task)
        return await Ceremony(holder, world.task, board, patience=patience, progress=progress).run()


async def hold(world: World, server: FakeServer, folder: Path, patience: float = 20.0) -> list[bytes]:
    """All holders at once; the first refusal ends it for everybody."""
    async with AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(holder_of(world, i, folder)) for i in range(world.holders)]
        try:
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(take_part(world, server, holder, patience)) for holder in holders]
        except* ProblemError as several:
            raise several.exceptions[0] from None
        return [one.result() for one in work]


def stored(folder: Path, name: str, world: World, kind: str = "key", passphrase: str = "") -> dict[int, bytes]:
    path = folder / name / "epochs" / f"{world.task.id}-1.{kind}"
    return {entry.subshare: entry.seed for entry in read_private(path, EpochSecret, passphrase).seeds}


async def test_three_holders_make_one_key(tmp_path: Path, world: World, server: FakeServer) -> None:
    digests = await hold(world, server, tmp_path)
    key = server.posts["confirmation"]["holder-0"][1]
    assert set(digests) == {hashlib.sha256(key).digest()}
    seeds: dict[int, bytes] = {}
    for index in range(3):
        mine = stored(tmp_path, f"holder-{index}", world)
        assert set(mine) == set(world.task.sharing.subshares_of(index))
        assert all(seeds.setdefault(part, seed) == seed for part, seed in mine.items())
    dealer = make_dealer(world.task)
    total = sum(dealer.public_key_share(seed).astype(object) for seed in seeds.values())
    assert (  # type: ignore[attr-defined]
        residues.unpack(key, dealer.layout) == [[p % q for p, q in zip(total[0], dealer.layout.moduli, strict=True)]]  # type: ignore[index]
    ).all()
    assert all(set(server.posts[phase]) == {"holder-0", "holder-1", "holder-2"} for phase in PHASES)


async def test_nothing_secret_is_on_the_board(tmp_path: Path, world: World, server: FakeServer) -> None:
    await hold(world, server, tmp_path)
    board = b"".join(
        message.encode() + body for posts in server.posts.values() for message, body in posts.values()
    ) + b"".join(
        read_unverified(message, KINDS[phase]).__repr__().encode()
        for phase, posts in server.posts.items()
        for message, _ in posts.values()
    )
    for index in range(3):
        for kind in ("key", "draws"):
            for seed in stored(tmp_path, f"holder-{index}", world, kind).values():
                assert seed not in board
                assert repr(seed)[2:-1].encode() not in board


async def test_secrets_are_private_files_under_the_passphrase(tmp_path: Path, server: FakeServer) -> None:
    world = World(1, {"threshold": 1})
    async with (
        FakeServer(world.task) as own,
        holder_of(world, 0, tmp_path, passphrase="correct horse battery staple") as holder,
    ):
        told: list[str] = []
        await take_part(world, own, holder, told=told)
        for kind in ("key", "draws"):
            path = holder.secret_path(world.task, kind)
            assert path.stat().st_mode & 0o777 == 0o600
            assert not path.read_bytes().startswith(b"{")
            with expect_problem(BAD_KEY_FILE, "passphrase"):
                read_private(path, EpochSecret)
        assert set(stored(tmp_path, "holder-0", world, passphrase="correct horse battery staple")) == {0}
        assert [line for line in told if "posting" in line] == [f"{phase}: posting" for phase in PHASES]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_restart_after_each_post(tmp_path: Path, world: World, server: FakeServer, phase: str) -> None:
    """Holder 0 dies as soon as its post of a phase is on the board, and comes back with only its files."""
    async with (
        holder_of(world, 1, tmp_path) as one,
        holder_of(world, 2, tmp_path) as two,
        asyncio.TaskGroup() as group,
    ):
        others = [group.create_task(take_part(world, server, holder)) for holder in (one, two)]
        async with holder_of(world, 0, tmp_path) as zero:
            dying = asyncio.create_task(take_part(world, server, zero))
            await server.until(lambda: "holder-0" in server.posts[phase])
            dying.cancel()
            await asyncio.wait([dying])
        draws = stored(tmp_path, "holder-0", world, "draws")
        async with holder_of(world, 0, tmp_path) as zero:
            mine = await take_part(world, server, zero)
    assert {mine} == {one.result() for one in others}
    assert stored(tmp_path, "holder-0", world, "draws") == draws
    puts = [path for method, path in server.seen if method == "PUT" and path.endswith(f"/{phase}/holder-0")]
    assert len(puts) == 1


async def test_a_finished_ceremony_can_be_run_again(tmp_path: Path, world: World, server: FakeServer) -> None:
    first = await hold(world, server, tmp_path)
    keys = [stored(tmp_path, f"holder-{i}", world) for i in range(3)]
    assert await hold(world, server, tmp_path) == first
    assert [stored(tmp_path, f"holder-{i}", world) for i in range(3)] == keys


def shown_to(name: str, phase: str, change: Callable[[Posts], Posts]) -> View:
    """Lies to one holder about one phase, once everybody has posted."""

    def view(asked: str, who: str, posts: Posts) -> Posts:
        return change(posts) if (asked, who) == (phase, name) and len(posts) == 3 else posts

    return view


def resigned(world: World, phase: str, signer: int, **changes: Any) -> Callable[[Posts], Posts]:
    """holder-1's message with fields changed, signed by holder number `signer`."""

    def change(posts: Posts) -> Posts:
        message = replace(read_unverified(posts["holder-1"][0], KINDS[phase]), **changes)
        return posts | {"holder-1": (world.committee[signer].key.sign(message), posts["holder-1"][1])}

    return change


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("signer", "changes", "problem"),
    [
        (2, {}, BAD_SIGNATURE),
        (1, {"holder": "holder-2"}, NOT_ADDRESSED),
        (1, {"epoch": 0}, WRONG_EPOCH),
        (1, {"task_hash": b"\x01" * 32}, WRONG_TASK),
    ],
    ids=["by_another", "for_another", "other_epoch", "other_task"],
)
async def test_a_post_that_is_not_what_it_should_be(
    tmp_path: Path,
    world: World,
    server: FakeServer,
    phase: str,
    signer: int,
    changes: dict[str, object],
    problem: ProblemType,
) -> None:
    server.view = shown_to("holder-0", phase, resigned(world, phase, signer, **changes))
    with expect_problem(problem):
        await hold(world, server, tmp_path)


async def test_one_holders_post_in_anothers_place(tmp_path: Path, world: World, server: FakeServer) -> None:
    server.view = shown_to("holder-0", "contribution", lambda posts: posts | {"holder-1": posts["holder-2"]})
    with expect_problem(BAD_SIGNATURE):
        await hold(world, server, tmp_path)
    assert server.posts["reveal"] == {}


async def test_a_post_of_another_phase_is_none(tmp_path: Path, world: World, server: FakeServer) -> None:
    def swap(posts: Posts) -> Posts:
        return posts | {"holder-1": server.posts["contribution"]["holder-1"]}

    server.view = shown_to("holder-0", "commitment", swap)
    with expect_problem(BAD_SIGNATURE, "not of this kind"):
        await hold(world, server, tmp_path)


async def test_holders_that_are_shown_different_contributions(tmp_path: Path, world: World, server: FakeServer) -> None:
    """The split that a server would need to learn a part's seed: two transcripts, so nobody reveals."""

    def other_boxes(posts: Posts) -> Posts:
        honest = read_unverified(posts["holder-1"][0], Contribution)
        again = [box for box in honest.boxes if box.to == "holder-0"]
        return resigned(world, "contribution", 1, boxes=tuple(again))(posts)

    server.view = shown_to("holder-0", "contribution", other_boxes)
    with expect_problem(CEREMONY_CONFLICT, "different contributions"):
        await hold(world, server, tmp_path)
    assert server.posts["reveal"] == {}


async def test_commitments_then_another_reveal(tmp_path: Path, world: World, server: FakeServer) -> None:
    """A holder (here with the server's help) that reveals other bytes than it committed to."""
    other = b"\0" * make_dealer(world.task).layout.size

    def swap(posts: Posts) -> Posts:
        digests = (SubshareDigest(0, hashlib.sha256(other).digest()),)
        lied = resigned(world, "reveal", 1, digests=digests)(posts)
        return lied | {"holder-1": (lied["holder-1"][0], other)}

    server.view = shown_to("holder-0", "reveal", swap)
    with expect_problem(COMMITMENT_BROKEN, "'holder-1'"):
        await hold(world, server, tmp_path)
    assert not (tmp_path / "holder-0" / "epochs" / f"{world.task.id}-1.key").exists()
    assert "holder-0" not in server.posts["confirmation"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda body: bytes([body[0] ^ 1]) + body[1:], COMMITMENT_BROKEN),
        (lambda body: body[:-1], MALFORMED),
        (lambda body: body + b"\0", TOO_LARGE),
    ],
    ids=["flipped", "short", "long"],
)
async def test_a_body_that_the_board_changed(
    tmp_path: Path, world: World, server: FakeServer, change: Callable[[bytes], bytes], problem: ProblemType
) -> None:
    def tamper(posts: Posts) -> Posts:
        message, body = posts["holder-1"]
        return posts | {"holder-1": (message, change(body))}

    server.view = shown_to("holder-2", "reveal", tamper)
    with expect_problem(problem):
        await hold(world, server, tmp_path)


async def test_confirmations_of_different_keys(tmp_path: Path, world: World, server: FakeServer) -> None:
    server.view = shown_to("holder-0", "confirmation", resigned(world, "confirmation", 1, key=b"\x02" * 32))
    with expect_problem(CEREMONY_CONFLICT, "different joint keys"):
        await hold(world, server, tmp_path)


@pytest.mark.parametrize("hidden", [("holder-1",), ("holder-1", "holder-2")])
async def test_who_does_not_answer_is_named(
    tmp_path: Path, world: World, server: FakeServer, hidden: tuple[str, ...]
) -> None:
    everybody = {f"holder-{i}": ("a.b.c", b"") for i in range(3)}
    server.view = lambda phase, who, posts: {name: post for name, post in everybody.items() if name not in hidden}
    async with holder_of(world, 0, tmp_path) as holder:
        with expect_problem(NO_QUORUM, f"no contribution from {', '.join(hidden)} within"):
            await take_part(world, server, holder, 0.3)


async def test_strangers_on_the_board_do_not_count(tmp_path: Path, world: World, server: FakeServer) -> None:
    """A board that fills up with posts of nobody in the committee is a board with holders missing."""

    def view(phase: str, who: str, posts: Posts) -> Posts:
        return posts | {"stranger": ("a.b.c", b""), "stranger-2": ("a.b.c", b"")}

    server.view = view
    async with holder_of(world, 0, tmp_path) as holder:
        with expect_problem(NO_QUORUM, "holder-1, holder-2"):
            await take_part(world, server, holder, 0.3)


async def test_a_board_that_cannot_be_reached(tmp_path: Path, world: World) -> None:
    gone = FakeServer(world.task)
    async with gone:
        pass
    async with holder_of(world, 0, tmp_path) as holder:
        with expect_problem(UNREACHABLE):
            await take_part(world, gone, holder)
