"""One key holder and one round, over real HTTP: what it releases, when, and what it writes down."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from msgspec.structs import replace

from he_holder.holder import KeyHolder, check_promise, check_reachable
from he_holder.hpke_key import HpkeKey
from he_holder.ledger import Ledger
from he_holder.request import OpeningRequest
from he_party.identity import Identity
from he_protocol import paths
from he_protocol.identity.jws import SigningKey, token_hash, verify
from he_protocol.messages import FailedBucket, Share, SignedUpdate
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_KEY_FILE,
    BUDGET_EXHAUSTED,
    DIGEST_MISMATCH,
    INTERNAL,
    KEYS_NOT_READY,
    MANIFEST_MISMATCH,
    NUMBER_USED,
    OVERLOADED,
    REQUEST_TIMEOUT,
    RESIDUE_RANGE,
    TOO_FEW_CLIENTS,
    TOO_MANY_CONNECTIONS,
    TRAILING_BYTES,
    UNREACHABLE,
    UPDATE_OPENED_BEFORE,
    WRONG_EPOCH,
    WRONG_SIZE,
    ProblemType,
)
from he_testing.fake_server import FakeServer, key_bodies, problem
from he_testing.problems import expect_problem
from tests.support.holders import give_key, holder_of, line_to, open_round
from tests.support.openings import ask, share
from tests.support.parties import NOW, World, random_integers


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def bodies(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Encrypted once; each test signs them anew."""
    folder = tmp_path_factory.mktemp("contexts")
    return [world.encrypt(random_integers(world.task.length, seed), folder) for seed in range(3)]


@dataclass
class Scene:
    """Holder 0 and a server with one closed round."""

    world: World
    server: FakeServer
    holder: KeyHolder
    updates: list[SignedUpdate]
    request: OpeningRequest
    bodies: list[dict[str, bytes]]

    @property
    def ledger_file(self) -> Path:
        return self.holder.directory / "ledger.db"

    @property
    def expected(self) -> dict[int, bytes]:
        """The share computed in memory."""
        c1 = {bytes.fromhex(i): body for i, body in self.server.bodies.items()}
        return share(self.world, 0, self.request, c1)

    async def open(self, number: int = 1, holder: KeyHolder | None = None) -> None:
        holder = holder or self.holder
        async with line_to(self.server.url, holder) as line:
            await open_round(holder, self.world.task, number, line)

    async def problems(self) -> list[str]:
        return [one.problem for one in await self.holder.ledger.refusals(self.world.task.hash)]

    async def rounds(self) -> list[int]:
        return [one.round for one in await self.holder.ledger.votes(self.world.task.hash)]


@pytest.fixture
async def scene(tmp_path: Path, world: World, bodies: list[dict[str, bytes]]) -> AsyncIterator[Scene]:
    async with FakeServer(world.task, committee=world.committee) as server, holder_of(world, 0, tmp_path) as holder:
        give_key(world, 0, holder)
        await holder.join(world.task, server.url)
        updates = [world.update(name, body) for name, body in zip("abc", bodies, strict=True)]
        request = ask(world, updates)
        pairs = [(update, body["c1"]) for update, body in zip(updates, bodies, strict=True)]
        server.offer(request, key_bodies(pairs))
        yield Scene(world, server, holder, updates, request, bodies)


def rows(path: Path, table: str) -> int:
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


async def test_the_share_is_the_one_that_follows_from_the_signed_updates(scene: Scene) -> None:
    await scene.open()
    head, body = scene.server.shares[1, "holder-0"]
    said = verify(head, Share, scene.holder.identity.key.public)
    assert (said.task_hash, said.epoch, said.round) == (scene.world.task.hash, 1, 1)
    assert (said.manifest, said.holder) == (scene.request.manifest_hash, "holder-0")
    assert [entry.subshare for entry in said.vectors] == list(scene.expected)
    assert [entry.sha256 for entry in said.vectors] == [hashlib.sha256(v).digest() for v in scene.expected.values()]
    assert body == b"".join(scene.expected.values())
    assert await scene.problems() == []


async def test_the_decision_is_written_before_anything_leaves(scene: Scene) -> None:
    found: list[tuple[str, int, int]] = []

    async def look(request: web.Request) -> None:
        found.append((request.method, rows(scene.ledger_file, "votes"), rows(scene.ledger_file, "voted_updates")))

    scene.server.on_share = look
    assert rows(scene.ledger_file, "votes") == 0
    await scene.open()
    assert found == [("PUT", 1, 3)]


async def test_a_crash_between_decision_and_release_then_the_same_bytes(
    tmp_path: Path, world: World, scene: Scene
) -> None:
    """The PUT fails after the decision; a holder restarted on the same files releases what it would have."""
    key = ("PUT", paths.share_path(world.task.id, 1, "holder-0"))
    scene.server.replaced[key] = problem(INTERNAL)
    with expect_problem(INTERNAL):
        await scene.open()
    assert await scene.rounds() == [1]
    assert scene.server.shares == {}
    await scene.holder.ledger.close()
    del scene.server.replaced[key]
    async with holder_of(world, 0, tmp_path) as again:
        await scene.open(holder=again)
        assert scene.server.shares[1, "holder-0"][1] == b"".join(scene.expected.values())
        first = scene.server.shares[1, "holder-0"]
        await scene.open(holder=again)
        assert scene.server.shares[1, "holder-0"] == first
        assert len(await again.ledger.votes(world.task.hash)) == 1


@pytest.mark.parametrize("kind", [UNREACHABLE, INTERNAL, OVERLOADED, REQUEST_TIMEOUT, TOO_MANY_CONNECTIONS])
async def test_a_failure_of_the_service_is_not_a_refusal(scene: Scene, kind: ProblemType) -> None:
    scene.server.replaced["GET", paths.key_sections_path(scene.world.task.id, 1)] = problem(kind)
    with expect_problem(kind):
        await scene.open()
    assert await scene.rounds() == []  # while it screened
    scene.server.stages[1] = "release"
    with expect_problem(kind):
        await scene.open()
    assert await scene.rounds() == [1]
    assert await scene.problems() == []
    assert [kind for _, _, kind in scene.server.answers] == []
    assert scene.server.put_shares == []


async def test_a_key_part_that_is_not_what_was_signed(scene: Scene) -> None:
    update = scene.request.headers[1].update_id.hex()
    honest = scene.server.bodies[update]
    scene.server.bodies[update] = honest[:-1] + bytes([honest[-1] ^ 1])
    with expect_problem(DIGEST_MISMATCH, update):
        await scene.open()
    (refusal,) = await scene.holder.ledger.refusals(scene.world.task.hash)
    assert (refusal.round, refusal.problem, refusal.seen) == (1, "digest-mismatch", NOW)
    assert refusal.manifest_hash == token_hash(scene.request.manifest_token)
    with sqlite3.connect(scene.ledger_file) as connection:
        assert connection.execute("SELECT manifest FROM refusals").fetchall() == [(scene.request.manifest_token,)]
    connection.close()
    assert scene.server.put_shares == []
    scene.server.bodies[update] = honest  # the server may still come to its senses: the manifest was accepted
    await scene.open()
    assert scene.server.shares[1, "holder-0"][1] == b"".join(scene.expected.values())


async def test_swapped_key_parts_are_noticed(scene: Scene) -> None:
    """A chosen combination (one client's c1 twice) never enters the sum."""
    one, two, _ = (header.update_id.hex() for header in scene.request.headers)
    scene.server.bodies[one] = scene.server.bodies[two]
    with expect_problem(DIGEST_MISMATCH):
        await scene.open()
    assert scene.server.put_shares == []


@pytest.mark.parametrize("place", [0, 1])
async def test_a_key_part_that_does_not_end(scene: Scene, place: int) -> None:
    """Parts come one after the other: a byte too many shifts the next one, which is then not what its client signed."""
    update = scene.request.headers[place].update_id.hex()
    scene.server.bodies[update] += b"\0"
    scene.server.stages[1] = "release"
    with expect_problem(DIGEST_MISMATCH, scene.request.headers[place + 1].update_id.hex()):
        await scene.open()
    assert scene.server.put_shares == []


async def test_bytes_behind_the_last_key_part_are_refused(scene: Scene) -> None:
    update = scene.request.headers[-1].update_id.hex()
    scene.server.bodies[update] += b"\0"
    scene.server.stages[1] = "release"
    with expect_problem(TRAILING_BYTES):
        await scene.open()
    assert scene.server.put_shares == []


@pytest.mark.parametrize("place", [0, -1])
async def test_a_stream_of_key_parts_that_ends_early(scene: Scene, place: int) -> None:
    update = scene.request.headers[place].update_id.hex()
    scene.server.bodies[update] = scene.server.bodies[update][:-1]
    scene.server.stages[1] = "release"
    with expect_problem(WRONG_SIZE):
        await scene.open()
    assert scene.server.put_shares == []


async def test_a_signed_key_part_that_is_of_no_use_keeps_its_bucket_closed_and_no_other(
    tmp_path: Path, bodies: list[dict[str, bytes]]
) -> None:
    """The client's doing, not the server's: decided once, recorded once, and its bucket is all that is missing."""
    world = World(plan={"scheme": "ckks", "buckets": 2, "min_clients": 2})
    wild = {"c0": bodies[0]["c0"], "c1": b"\xff" * len(bodies[0]["c1"])}
    sent = {name: wild if name == "wild" else bodies[i % 3] for i, name in enumerate(["a", "b", "c", "wild"])}
    updates = {name: world.update(name, body) for name, body in sent.items()}
    request = ask(world, list(updates.values()), buckets={"c": 1, "wild": 1})
    async with FakeServer(world.task, committee=world.committee) as server, holder_of(world, 0, tmp_path) as holder:
        give_key(world, 0, holder)
        await holder.join(world.task, server.url)
        server.offer(request, key_bodies([(updates[name], body["c1"]) for name, body in sent.items()]))
        async with line_to(server.url, holder) as line:
            await open_round(holder, world.task, 1, line)
            first = server.shares[1, "holder-0"]
            await open_round(holder, world.task, 1, line)
        assert server.shares[1, "holder-0"] == first
        said = verify(first[0], Share, holder.identity.key.public)
        (named,) = (h.update_id for h in request.headers if h.client == "wild")
        assert said.failed == (FailedBucket(1, named, RESIDUE_RANGE.slug),)
        assert [(entry.bucket, entry.subshare) for entry in said.vectors] == [(0, 1), (0, 2)]
        assert len(first[1]) == 2 * world.task.scheme.share_layout(world.task.length).size
        assert await holder.ledger.refusals(world.task.hash) == []
        assert [one.round for one in await holder.ledger.votes(world.task.hash)] == [1]


async def test_too_small_a_round_is_refused_recorded_and_leaves_the_updates_usable(scene: Scene) -> None:
    scene.server.offer(ask(scene.world, scene.updates[:2], number=2), {})
    with expect_problem(TOO_FEW_CLIENTS):
        await scene.open(2)
    assert (await scene.problems(), await scene.rounds()) == (["too-few-clients"], [])
    await scene.open(1)


async def test_our_floor_is_applied_whatever_the_server_asks(tmp_path: Path, world: World, scene: Scene) -> None:
    scene.holder.min_clients_floor = 4
    with expect_problem(TOO_FEW_CLIENTS, "at least 4"):
        await scene.open()
    assert scene.server.put_shares == []


async def test_after_one_opening_neither_forks_nor_subsets_are_opened(scene: Scene) -> None:
    await scene.open()
    scene.server.put_shares.clear()
    more = scene.world.update("d", scene.bodies[0])
    scene.server.offer(ask(scene.world, [*scene.updates, more]), {})
    scene.server.stages |= {1: "vote", 2: "vote"}
    with expect_problem(NUMBER_USED):
        await scene.open(1)
    scene.server.offer(ask(scene.world, [*scene.updates, more], number=2), {})
    with expect_problem(UPDATE_OPENED_BEFORE):
        await scene.open(2)
    assert await scene.problems() == ["number-used", "update-opened-before"]
    assert scene.server.put_shares == []


async def test_a_manifest_in_the_place_of_another_round(scene: Scene) -> None:
    """Round 2's path must not serve round 1's manifest: what is judged is what was asked for."""
    scene.server.manifests[2] = scene.server.manifests[1]
    with expect_problem(MANIFEST_MISMATCH, "round"):
        await scene.open(2)
    assert (await scene.problems(), await scene.rounds()) == (["manifest-mismatch"], [])
    assert scene.server.put_shares == []


async def test_before_the_ceremony_nothing_is_fetched_and_the_server_is_told(
    tmp_path: Path, world: World, scene: Scene
) -> None:
    async with holder_of(world, 1, tmp_path) as other:
        with expect_problem(KEYS_NOT_READY):
            await scene.open(holder=other)
        asked = [(method, path.rsplit("/", 2)[-2:]) for method, path in scene.server.seen]
        assert asked == [("GET", ["1", "opening"]), ("PUT", ["answers", "holder-1"])]


async def test_a_secret_of_another_epoch_is_not_used(tmp_path: Path, world: World, scene: Scene) -> None:
    async with holder_of(world, 1, tmp_path) as other:
        give_key(world, 1, other, epoch=2)
        with expect_problem(WRONG_EPOCH) as _:
            other.share_maker(world.task)


async def test_a_refusal_about_secrets_does_not_show_them(tmp_path: Path, world: World, scene: Scene) -> None:
    async with holder_of(world, 1, tmp_path) as other:
        give_key(world, 1, other, epoch=2)
        with pytest.raises(Exception, match="EpochSecret") as caught:
            other.share_maker(world.task)
        for seed in world.dealt[0][1].values():
            assert repr(seed)[2:-1] not in str(caught.value)
            assert seed.hex() not in str(caught.value)


async def test_a_key_file_open_to_others_is_refused_as_such(tmp_path: Path, world: World, scene: Scene) -> None:
    async with holder_of(world, 1, tmp_path) as other:
        give_key(world, 1, other)
        other.secret_path(world.task, "key").chmod(0o644)
        with expect_problem(BAD_KEY_FILE, "open to others"):
            other.share_maker(world.task)


async def test_a_stranger_does_not_join(tmp_path: Path, world: World) -> None:
    key = HpkeKey.generate()
    stranger = world.authority.party("stranger", "holder", hpke=key)
    async with holder_of(world, 0, tmp_path) as holder:
        posing = KeyHolder(stranger, holder.ledger, tmp_path)
        with expect_problem(BAD_COMMITTEE, "'stranger'"):
            await posing.join(world.task, "http://server")
        assert await holder.ledger.joined() == []


@pytest.mark.parametrize("which", ["signing", "hpke"])
async def test_a_task_that_lists_other_keys_for_us(tmp_path: Path, world: World, which: str) -> None:
    """Somebody enrolled under our name: shares of its task would not be ours to give."""
    async with holder_of(world, 0, tmp_path) as holder:
        task = world.task
        if which == "hpke":
            first, *rest = task.config.committee.holders
            task = world.signed(task.config, holders=(replace(first, hpke=HpkeKey.generate().public), *rest))
        else:
            mine = holder.identity
            holder.identity = Identity(mine.name, SigningKey.generate(), mine.credential, mine.authority)
        with expect_problem(BAD_COMMITTEE, "the task lists another "):
            await holder.join(task, "http://server")
        assert await holder.ledger.joined() == []


NOISY = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 4.0, "delta": 1e-5}


@pytest.mark.parametrize(("budget", "kept"), [(100.0, True), (0.5, False)])
async def test_a_promise_that_the_budget_of_openings_breaks(tmp_path: Path, budget: float, kept: bool) -> None:
    world = World(plan={"privacy": {**NOISY, "epsilon_budget": budget}})
    async with holder_of(world, 0, tmp_path) as holder:
        if kept:
            await holder.join(world.task, "http://server")
        else:
            with expect_problem(BUDGET_EXHAUSTED, "epsilon at most 0.5"):
                await holder.join(world.task, "http://server")
        assert len(await holder.ledger.joined()) == kept


def test_without_noise_nothing_is_promised(world: World) -> None:
    check_promise(world.task)


async def test_a_task_below_our_floor_is_not_joined(tmp_path: Path, world: World) -> None:
    async with holder_of(world, 0, tmp_path, floor=4) as holder:
        with expect_problem(TOO_FEW_CLIENTS, "at least 4"):
            await holder.join(world.task, "http://server")
        assert await holder.ledger.joined() == []
        holder.min_clients_floor = 3
        await holder.join(world.task, "http://server")


@pytest.mark.parametrize(("buckets", "floor", "reached"), [(1, 9, True), (1, 10, False), (2, 4, True), (2, 5, False)])
def test_a_floor_that_a_task_can_never_reach(buckets: int, floor: int, reached: bool) -> None:
    task = World(plan={"min_clients": 2, "max_clients": 9, "buckets": buckets}).task
    if reached:
        check_reachable(task, floor)
        return
    with expect_problem(TOO_FEW_CLIENTS, f"at least {floor}"):
        check_reachable(task, floor)


@pytest.mark.parametrize(("text", "f"), [("2/3/2", 0), ("2/3/3", 1), ("2/4/3", 1), ("3/7/5", 2)])
async def test_a_committee_below_our_least_f_is_not_joined(tmp_path: Path, text: str, f: int) -> None:
    """Whatever the authority allows: a server and one holder would break every promise of the first."""
    threshold, holders, agreement = (int(number) for number in text.split("/"))
    world = World(holders, {"threshold": threshold, "agreement": agreement, "allow_no_collusion": not f})
    async with holder_of(world, 0, tmp_path) as holder:
        holder.least_f = f + 1
        with expect_problem(BAD_COMMITTEE, f"f at least {f + 1}"):
            await holder.join(world.task, "http://server")
        assert await holder.ledger.joined() == []
        holder.least_f = f
        await holder.join(world.task, "http://server")


async def test_a_holder_shows_no_secrets(tmp_path: Path, world: World) -> None:
    async with holder_of(world, 0, tmp_path, passphrase="correct horse battery") as holder:
        shown = repr(holder)
        for secret in (holder.identity.key.private, world.hpke[0].private, holder.passphrase.encode()):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown


async def test_ledgers_of_two_holders_are_their_own(tmp_path: Path, world: World, scene: Scene) -> None:
    await scene.open()
    other = await Ledger.open(tmp_path / "other.db")
    assert await other.votes(world.task.hash) == []
    await other.close()
