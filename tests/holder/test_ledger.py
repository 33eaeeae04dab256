"""The holder's ledger on real SQLite files."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from he_holder import ledger, ledger_schema
from he_holder import rules as checks
from he_holder.ledger import Ledger
from he_holder.request import OpeningRequest
from he_holder.rules import VOTING, Rule
from he_migrations.run import downgrade
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified, token_hash
from he_protocol.messages import SignedUpdate, UpdateHeader
from he_protocol.problems import (
    BUDGET_EXHAUSTED,
    CLOCK_SKEW,
    DATABASE_UNAVAILABLE,
    NUMBER_USED,
    REPEATED_BASE,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    UPDATE_OPENED_BEFORE,
)
from he_testing.problems import expect_problem
from tests.support.openings import FRESH, ask
from tests.support.parties import NOW, World
from tests.support.rules import without


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holder" / "ledger.db"


@pytest.fixture
async def book(path: Path, world: World) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(path)
    await opened.join(world.task, "http://server", 1.0)
    yield opened
    await opened.close()


async def decide(book: Ledger, request: OpeningRequest, rules: tuple[Rule, ...] = VOTING) -> OpeningRequest:
    return await book.decide(request, rules)


def crowd(world: World, *names: str, number: int = 1, base_version: int = 0, **changes: Any) -> OpeningRequest:
    updates = [world.update(name, base_version=base_version) for name in names]
    return ask(world, updates, number=number, **changes)


def header_of(update: SignedUpdate) -> UpdateHeader:
    return read_unverified(update.header, UpdateHeader)


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
    connection.close()
    return found


async def test_a_vote_is_on_the_disk_before_decide_returns(path: Path, book: Ledger, world: World) -> None:
    """A copy of the one file, taken the moment that decide() returns, has everything: no journal is needed."""
    request = await decide(book, crowd(world, "a", "b", "c"))
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    copy = path.with_name("copy.db")
    shutil.copyfile(path, copy)
    assert [(row[1], row[2], row[3]) for row in rows(copy, "votes")] == [
        (1, request.manifest_hash, request.manifest_token)
    ]
    assert {row[1] for row in rows(copy, "voted_updates")} == {header.update_id for header in request.headers}


async def test_a_commit_survives_a_power_cut(book: Ledger) -> None:
    """synchronous=EXTRA also syncs the directory after the journal is gone; FULL does not (sqlite.org/pragma)."""
    async with book._transaction() as connection:
        pragmas = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("synchronous", "foreign_keys", "journal_mode")
        }
    assert pragmas == {"synchronous": 3, "foreign_keys": 1, "journal_mode": "delete"}


async def test_the_same_manifest_again_is_accepted_and_changes_nothing(path: Path, book: Ledger, world: World) -> None:
    request = crowd(world, "a", "b", "c")
    first = await decide(book, request)
    before = rows(path, "votes"), rows(path, "voted_updates")
    again = await decide(book, replace(request, now=request.now + 60))
    assert again.manifest_hash == first.manifest_hash
    assert (rows(path, "votes"), rows(path, "voted_updates")) == before


async def test_a_ledger_that_another_program_holds_is_unavailable_for_now(path: Path, book: Ledger) -> None:
    async with book._transaction() as connection:
        await connection.exec_driver_sql("PRAGMA busy_timeout=1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with expect_problem(DATABASE_UNAVAILABLE, "database is locked"):
            await book.destroyed()
    assert await book.destroyed() == frozenset()


async def test_who_is_cancelled_leaves_no_lock(path: Path, book: Ledger) -> None:
    """At whatever moment. With the collector off: it would end what was left behind, some time or other."""
    assert not await _locked_by_cancelling(partial(book.newest, bytes(32)), path, 150)
    unguarded = partial(Ledger.newest.__wrapped__, book, bytes(32))  # type: ignore[attr-defined]
    assert await _locked_by_cancelling(unguarded, path, 3000)  # ends at the first


async def _locked_by_cancelling(work: Callable[[], Coroutine[Any, Any, object]], path: Path, tasks: int) -> bool:
    """Whether any of many tasks that were cancelled at different moments still holds the database."""
    gc.disable()
    try:
        for moment in range(tasks):
            task = asyncio.create_task(work())
            until = time.perf_counter() + 40e-6 * (moment * 37 % 150)  # up to 6 ms, in no order
            while time.perf_counter() < until:
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)
            with closing(sqlite3.connect(path, timeout=0.1)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    return True
        return False
    finally:
        gc.enable()


async def test_a_second_manifest_of_a_number_changes_nothing(path: Path, book: Ledger, world: World) -> None:
    first = await decide(book, crowd(world, "a", "b", "c", "d"))
    before = path.read_bytes()
    with expect_problem(NUMBER_USED, first.manifest_hash.hex()):
        await decide(book, crowd(world, "e", "f", "g"))
    assert path.read_bytes() == before


async def test_a_refused_manifest_leaves_no_trace_in_the_history(path: Path, book: Ledger, world: World) -> None:
    with expect_problem(TOO_FEW_CLIENTS):
        await decide(book, crowd(world, "a", "b"))
    assert rows(path, "votes") == rows(path, "voted_updates") == []
    await decide(book, crowd(world, "a", "b", "c"))


async def test_a_restart_forgets_nothing(path: Path, world: World) -> None:
    updates = [world.update(name) for name in ("a", "b", "c", "d")]
    first = await Ledger.open(path)
    await first.join(world.task, "http://server", 1.0)
    request = await decide(first, ask(world, updates))
    await first.refused(world.task, 9, ProblemError(STALE_UPDATE, "why"), 5.0, "token")
    await first.close()

    second = await Ledger.open(path)
    assert await second.joined() == [(world.task.token, "http://server")]
    assert [record.manifest_hash for record in await second.votes(world.task.hash)] == [request.manifest_hash]
    assert [record.problem for record in await second.refusals(world.task.hash)] == ["stale-update"]
    await decide(second, request)
    with expect_problem(UPDATE_OPENED_BEFORE):
        await decide(second, ask(world, updates[:3], number=2))
    with expect_problem(NUMBER_USED):
        await decide(second, ask(world, updates[:3]))
    await second.close()


async def test_a_vote_outlives_a_transaction_that_fails(path: Path, book: Ledger, world: World) -> None:
    """Rows of one vote are all there or not at all: a collision on the last update undoes the vote."""
    await decide(book, ask(world, [shared := world.update("a"), world.update("b"), world.update("c")]))
    before = rows(path, "votes"), rows(path, "voted_updates")
    request = ask(world, [world.update("d"), world.update("e"), shared], number=2)
    with pytest.raises(IntegrityError):
        await decide(book, request, without(checks.updates_fresh, checks.bases_fresh))
    assert (rows(path, "votes"), rows(path, "voted_updates")) == before


async def test_numbers_end_where_the_plan_ends(tmp_path: Path) -> None:
    world = World(plan={"max_openings": 2})
    book = await Ledger.open(tmp_path / "ledger.db")
    await book.join(world.task, "http://server", 1.0)
    requests = [crowd(world, *(f"{who}{number}" for who in "abc"), number=number) for number in (1, 2, 3)]
    await decide(book, requests[0])
    await decide(book, requests[0])
    await decide(book, requests[1])
    with expect_problem(BUDGET_EXHAUSTED):
        await decide(book, requests[2])
    for request in requests[:2]:  # retries cost nothing, even with every number used
        await decide(book, request)
    await book.close()


async def test_another_task_has_another_history(book: Ledger, world: World) -> None:
    other = World(plan={"name": "other"}, authority=world.authority)
    await book.join(other.task, "http://server", 2.0)
    one = world.update("a")
    await decide(book, ask(world, [one, world.update("b"), world.update("c")]))
    same_id = other.update("a", update_id=header_of(one).update_id)
    await decide(book, ask(other, [same_id, other.update("b"), other.update("c")]))
    assert len(await book.votes(world.task.hash)) == len(await book.votes(other.task.hash)) == 1


async def test_the_model_may_not_go_back_from_opening_to_opening(book: Ledger, world: World) -> None:
    await decide(book, crowd(world, "a", "b", "c", number=2, model_version=2))
    with expect_problem(STALE_UPDATE, "went back"):
        await decide(book, crowd(world, "d", "e", "f", number=3, model_version=1))
    await decide(book, crowd(world, "d", "e", "f", number=1, model_version=1))
    await decide(book, crowd(world, "g", "h", "i", number=3, model_version=2))


async def test_numbers_that_were_skipped_may_come_later(book: Ledger, world: World) -> None:
    """A holder that was away sees them in another order; the history is that of lower numbers."""
    for number in (3, 1, 2):
        await decide(book, crowd(world, "a", "b", "c", number=number, base_version=number, model_version=number))
    assert [vote.opening for vote in await book.votes(world.task.hash)] == [1, 2, 3]
    assert await book.newest(world.task.hash) == (3, 3)


async def test_time_may_not_go_back_from_opening_to_opening(book: Ledger, world: World) -> None:
    now = int(NOW)
    await decide(book, crowd(world, "a", "b", "c", number=2, formed=now))
    with expect_problem(CLOCK_SKEW, f"from {now}"):
        await decide(book, crowd(world, "d", "e", "f", number=3, formed=now - 1))
    await decide(book, crowd(world, "d", "e", "f", number=1, formed=now - 1))
    await decide(book, crowd(world, "g", "h", "i", number=3, formed=now))


@pytest.mark.parametrize("noisy", [False, True])
async def test_one_clients_data_in_two_crowds(tmp_path: Path, noisy: bool) -> None:
    """Two updates of one client on one model version; without noise their sums are equations over the same data."""
    plan = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 4.0, "delta": 1e-5, "epsilon_budget": 100.0}
    world = World(plan={"privacy": plan if noisy else {"unit": "none"}})
    book = await Ledger.open(tmp_path / "ledger.db")
    await book.join(world.task, "http://server", 1.0)
    await decide(book, crowd(world, "victim", "a", "b"))
    again = crowd(world, "victim", "c", "d", number=2)
    if noisy:
        await decide(book, again)
    else:
        with expect_problem(REPEATED_BASE):
            await decide(book, again)
        later = [world.update(name, base_version=1) for name in ("victim", "c", "d")]
        await decide(book, ask(world, later, number=2, model_version=1))
    await book.close()


async def test_looking_at_a_manifest_binds_nothing(path: Path, book: Ledger, world: World) -> None:
    first = await decide(book, crowd(world, "a", "b", "c"))
    before = path.read_bytes()
    asked = await book.informed(replace(first, ledger_view=FRESH))
    assert asked.ledger_view.voted == first.manifest_hash
    other = await book.informed(ask(world, list(first.updates), number=2))
    assert other.ledger_view.opened_before == {header.update_id for header in first.headers}
    assert other.ledger_view.repeated == {("a", 0), ("b", 0), ("c", 0)}
    assert path.read_bytes() == before


async def test_a_task_that_was_not_joined_gets_no_vote(path: Path, world: World) -> None:
    book = await Ledger.open(path)
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        await decide(book, crowd(world, "a", "b", "c"))
    assert rows(path, "votes") == []
    await book.close()


async def test_joining_again_moves_the_server_and_nothing_else(book: Ledger, world: World) -> None:
    await book.join(world.task, "https://elsewhere", 99.0)
    assert await book.joined() == [(world.task.token, "https://elsewhere")]


@pytest.mark.parametrize("attempt", range(3))
async def test_of_overlapping_manifests_at_once_one_gets_the_vote(path: Path, world: World, attempt: int) -> None:
    """Two processes on one file; ten rounds that all contain one victim."""
    books = [await Ledger.open(path) for _ in range(2)]
    await books[0].join(world.task, "http://server", 1.0)
    victim = world.update("victim")
    requests = [
        ask(world, [victim, world.update(f"x{i}"), world.update(f"y{i}")], number=i + 1) for i in range(attempt, 10)
    ]
    results = await asyncio.gather(
        *(decide(books[i % 2], request) for i, request in enumerate(requests)), return_exceptions=True
    )
    won = [result for result in results if isinstance(result, OpeningRequest)]
    lost = [result.problem for result in results if isinstance(result, ProblemError)]
    assert len(won) == 1
    assert lost == [UPDATE_OPENED_BEFORE] * (len(requests) - 1)
    assert [record.round for record in await books[1].votes(world.task.hash)] == [won[0].manifest.round]
    for book in books:
        await book.close()


async def test_of_manifests_with_one_number_at_once_one_gets_the_vote(path: Path, world: World) -> None:
    books = [await Ledger.open(path) for _ in range(2)]
    await books[0].join(world.task, "http://server", 1.0)
    requests = [crowd(world, f"x{i}", f"y{i}", f"z{i}") for i in range(8)]
    results = await asyncio.gather(
        *(decide(books[i % 2], request) for i, request in enumerate(requests)), return_exceptions=True
    )
    assert sum(isinstance(result, OpeningRequest) for result in results) == 1
    assert [result.problem for result in results if isinstance(result, ProblemError)] == [NUMBER_USED] * 7
    for book in books:
        await book.close()


async def test_manifests_at_once_do_not_overdraw_the_budget(path: Path) -> None:
    world = World(plan={"max_openings": 3})
    books = [await Ledger.open(path) for _ in range(2)]
    await books[0].join(world.task, "http://server", 1.0)
    requests = [crowd(world, *(f"{who}{i}" for who in "abc"), number=i + 1) for i in range(8)]
    results = await asyncio.gather(
        *(decide(books[i % 2], request) for i, request in enumerate(requests)), return_exceptions=True
    )
    assert sum(isinstance(result, OpeningRequest) for result in results) == 3
    assert [result.problem for result in results if isinstance(result, ProblemError)] == [BUDGET_EXHAUSTED] * 5
    for book in books:
        await book.close()


async def test_more_update_ids_than_one_query_asks_for(
    path: Path, book: Ledger, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "BATCH", 2)
    updates = [world.update(f"c{i}") for i in range(7)]
    first = await decide(book, ask(world, updates))
    last = max(updates, key=lambda update: header_of(update).update_id)
    again = ask(world, [world.update(f"d{i}") for i in range(5)] + [last], number=2)
    with expect_problem(UPDATE_OPENED_BEFORE, header_of(last).update_id.hex()):
        await decide(book, again)
    assert len(rows(path, "voted_updates")) == len(first.updates)


async def test_a_refusal_is_kept_once_with_its_manifest(path: Path, book: Ledger, world: World) -> None:
    refusal = ProblemError(NUMBER_USED, "round 1", expected="aa", got="bb")
    for seen in (10.0, 20.0):
        await book.refused(world.task, 1, refusal, seen, "fork.of.it")
    await book.refused(world.task, 1, refusal, 30.0, "another.fork.of.it")
    await book.refused(world.task, 1, ProblemError(STALE_UPDATE, "too"), 40.0, "fork.of.it")
    kept = await book.refusals(world.task.hash)
    assert [(one.seen, one.problem, one.manifest_hash) for one in kept] == [
        (10.0, "number-used", token_hash("fork.of.it")),
        (30.0, "number-used", token_hash("another.fork.of.it")),
        (40.0, "stale-update", token_hash("fork.of.it")),
    ]
    assert kept[0].detail == str(refusal)
    assert sorted(str(row[4]) for row in rows(path, "refusals")) == ["another.fork.of.it", "fork.of.it", "fork.of.it"]


async def test_refusals_are_bounded_and_a_flood_does_not_wash_out_other_evidence(
    book: Ledger, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "KEPT_REFUSALS", 3)
    fork = ProblemError(NUMBER_USED, "round 1")
    await book.refused(world.task, 1, fork, 1.0, "fork")
    for number in range(2, 12):
        await book.refused(world.task, number, ProblemError(STALE_UPDATE, "x"), float(number), "token")
    kept = await book.refusals(world.task.hash)
    assert [(one.round, one.problem) for one in kept] == [
        (1, "number-used"),
        (9, "stale-update"),
        (10, "stale-update"),
        (11, "stale-update"),
    ]


async def test_destroying_and_settling_keep_the_first_time(path: Path, book: Ledger, world: World) -> None:
    await decide(book, crowd(world, "a", "b", "c"))
    for now in (5.0, 6.0):
        await book.settled(world.task, 1, now)
        await book.destroy(world.task, now)
    assert rows(path, "tasks")[0][-2] == 5.0
    assert [vote.settled for vote in await book.votes(world.task.hash)] == [5.0]


async def test_migrations_make_the_schema_that_the_code_uses(path: Path, book: Ledger) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), ledger_schema.metadata) == []
    engine.dispose()


async def test_migrations_can_be_undone(path: Path, book: Ledger) -> None:
    await book.close()
    await downgrade("ledger", f"sqlite+aiosqlite:///{path}", "base")
    assert rows(path, "sqlite_master WHERE type = 'table' AND name != 'alembic_version'") == []
    again = await Ledger.open(path)
    assert await again.joined() == []
    await again.close()


async def test_the_ledger_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    await (await Ledger.open(path)).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(ProblemError, match="cannot be upgraded") as caught:
        await Ledger.open(path)
    assert caught.value.problem == DATABASE_UNAVAILABLE
    assert path.read_bytes() == before
