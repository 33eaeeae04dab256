"""Planted bugs: a simulation that does not find them proves nothing. `python -m tests.simulation.mutants [NAMES]`.

Every mutant replaces something at run time; none edits a source file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing import get_context
from random import Random
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from sqlalchemy import delete, func, insert, select, update

from he_client.spool import RECEIPT, EncryptedUpdate, Spool
from he_holder import ledger, ledger_schema
from he_holder import rules as checks
from he_holder.ledger import Ledger
from he_holder.opening import Openings
from he_protocol.committee import Committee
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified, verify
from he_protocol.messages import Vote
from he_protocol.problems import NOT_CERTIFIED
from he_protocol.schemes import kahe
from he_server.blobs.local import LocalWriter
from he_server.blobs.vectors import merge_sums
from he_server.jobs import forming, opening, publishing
from he_server.jobs.garbage import drop_round
from he_server.rules import updates as updates_rules
from he_server.rules.records import Accepted, RoundRecord
from he_server.services.commit_updates import UpdateCommitter
from he_server.store.folding import FoldingStore
from he_server.store.references import ReferenceStore
from he_server.store.rounds import RoundStore
from he_server.store.schema import accumulators, models, rounds, updates
from he_server.store.updates import UpdateStore

from .invariants import Violation
from .operations import run
from .schedules import Schedule, explore
from .soak import fix_hashes, mute

LIMIT, SEED = 500, 0
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    name: str
    why: str
    plant: Callable[[Patch], None]


def unsynced(patch: Patch) -> None:
    def commit(self: LocalWriter, name: str) -> None:
        self._file.flush()
        self._partial.replace(self._store.place(name))
        self._committed = True

    patch.setattr(LocalWriter, "commit", commit)


def early_receipt(patch: Patch) -> None:
    call, background = UpdateCommitter.__call__, list[asyncio.Task[Accepted]]()

    async def called(self: UpdateCommitter, task: Any, offered: Any) -> Accepted:
        async def later() -> Accepted:
            await asyncio.sleep(0.5)
            return await call(self, task, offered)

        number = (await RoundStore(self._store.database).recent(task.id))[0].number
        background.append(asyncio.create_task(later()))
        return Accepted(offered.receipt, number, created=True)

    patch.setattr(UpdateCommitter, "__call__", called)


def repeated_enters(patch: Patch) -> None:
    accept = UpdateStore.accept

    async def accepted(self: UpdateStore, task: Any, offers: Any, keep: Any) -> Any:
        outcomes = await accept(self, task, offers, keep)
        async with self.database.write() as connection:
            newest = select(func.max(rounds.c.id)).where(rounds.c.task_hash == task.id, rounds.c.state == "open")
            current = (await connection.execute(newest)).scalar_one()
            for (offered, _), outcome in zip(offers, outcomes, strict=False):
                if isinstance(outcome, Accepted) and not outcome.created:
                    mine = (updates.c.task_hash == task.id) & (updates.c.client == offered.client)
                    here = select(updates).where(mine, updates.c.round_id == current)
                    if (await connection.execute(here)).first() is None:
                        again = mine & (updates.c.update_id == offered.update_id)
                        await connection.execute(update(updates).where(again).values(round_id=current))
        return outcomes

    patch.setattr(UpdateStore, "accept", accepted)


def greedy_sweep(patch: Patch) -> None:
    async def of_rounds(self: ReferenceStore) -> frozenset[str]:
        return frozenset()

    patch.setattr(ReferenceStore, "of_rounds", of_rounds)


def shared_bytes_go(patch: Patch) -> None:
    async def folded_blobs(self: FoldingStore, blobs: Iterable[str]) -> frozenset[str]:
        return frozenset(blobs)

    patch.setattr(FoldingStore, "folded_blobs", folded_blobs)


def dropped_early(patch: Patch) -> None:
    opens = publishing.decrypt_sum  # type: ignore[attr-defined]

    async def opened(server: Any, task: Any, current: Any, *rest: Any, last: bool) -> Any:
        outcome = await opens(server, task, current, *rest, last=last)
        await drop_round(server, current.id)
        return outcome

    patch.setattr(publishing, "decrypt_sum", opened)


def published_twice(patch: Patch) -> None:
    async def publish(self: RoundStore, lease: Any, version: int, sha256: str, now: float, *_: Any) -> None:
        task = lease.round.task
        async with self.database.write() as connection:
            newest = select(func.max(models.c.version)).where(models.c.task_hash == task)
            version = (await connection.execute(newest)).scalar_one() + 1
            done = update(rounds).where(rounds.c.id == lease.round.id)
            await connection.execute(done.values(state="published", version=version))
            values = {"task_hash": task, "version": version, "round_id": None, "sha256": sha256, "created": now}
            await connection.execute(insert(models).values(values))

    patch.setattr(RoundStore, "publish", publish)


def folded_twice(patch: Patch) -> None:
    checkpoint = FoldingStore.checkpoint

    async def careless(self: FoldingStore, fold: Any, *rest: Any) -> None:
        await checkpoint(self, replace(fold, updates=fold.updates[:1]), *rest)
        async with self.database.write() as connection:
            mine = accumulators.c.id == fold.accumulator
            count = accumulators.c.updates + len(fold.updates) - 1
            await connection.execute(update(accumulators).where(mine).values(updates=count))

    patch.setattr(FoldingStore, "checkpoint", careless)


def sealed_again(patch: Patch) -> None:
    """The device's next vector is then the one that it has sealed before: its spool says which vectors are its own."""

    def pending(self: Spool) -> list[EncryptedUpdate]:
        for folder in self._folders():
            if not (folder / RECEIPT).exists():
                self.discard(self._entry(folder.name))
        return []

    patch.setattr(Spool, "pending", pending)


def _without(patch: Patch, *forgotten: Any) -> None:
    """A ledger that judges without these rules, and whose tables do not object."""
    record, decide = ledger._record, Ledger.decide

    async def recorded(connection: Any, request: Any) -> None:
        ids, task_hash = [entry.update_id for entry in request.manifest.updates], request.task.hash
        for table in (ledger_schema.voted_updates, ledger_schema.votes):
            mine = (table.c.task_hash == task_hash) & (table.c.opening == request.manifest.opening)
            await connection.execute(delete(table).where(mine))
        mine = ledger_schema.voted_updates.c.task_hash == task_hash
        await connection.execute(
            delete(ledger_schema.voted_updates).where(mine, ledger_schema.voted_updates.c.update_id.in_(ids))
        )
        await record(connection, request)

    async def decided(self: Ledger, request: Any, rules: Any) -> Any:
        return await decide(self, request, tuple(rule for rule in rules if rule not in forgotten))

    patch.setattr(ledger, "_record", recorded)
    patch.setattr(Ledger, "decide", decided)


def forks(patch: Patch) -> None:
    _without(patch, checks.number_unused)


def overlaps(patch: Patch) -> None:
    _without(patch, checks.updates_fresh, checks.bases_fresh)


def uncertified(patch: Patch) -> None:
    _without(patch, checks.certified)


def beyond_the_plan(patch: Patch) -> None:
    _without(patch, checks.number_in_plan)


def too_few(patch: Patch) -> None:
    _without(patch, checks.buckets_large_enough)


def counted_twice(patch: Patch) -> None:
    def counted(request: Any) -> None:
        keys = {holder.name: holder.key for holder in request.task.config.committee.holders}
        votes = [verify(token, Vote, keys[read_unverified(token, Vote).holder]) for token in request.votes]
        if sum(vote.manifest == request.manifest_hash for vote in votes) < request.task.committee.agreement:
            raise ProblemError(NOT_CERTIFIED, "too few votes")

    rules = tuple(counted if rule is checks.certified else rule for rule in checks.RELEASING)
    patch.setattr("he_holder.opening.RELEASING", rules)


def decided_late(patch: Patch) -> None:
    pending: list[Any] = []
    record = ledger._record

    async def postponed(connection: Any, request: Any) -> None:
        pending.append(request)

    def late(step: Any) -> Any:
        async def stepped(self: Openings, *args: Any) -> None:
            await step(self, *args)
            async with self._holder.ledger._transaction() as connection:
                while pending:
                    await record(connection, pending.pop())

        return stepped

    patch.setattr(ledger, "_record", postponed)
    patch.setattr(Openings, "_vote", late(Openings._vote))


def binding_screening(patch: Patch) -> None:
    screen = Openings._screen

    async def screened(self: Openings, request: Any, *rest: Any) -> None:
        await screen(self, request, *rest)
        with suppress(ProblemError):
            await self._holder.ledger.decide(request, checks.VOTING)

    patch.setattr(Openings, "_screen", screened)


def number_again(patch: Patch) -> None:
    next_opening = RoundStore.next_opening

    async def numbered(self: RoundStore, record: Any) -> Any:
        found = await next_opening(self, record)
        return found and (max(1, found[0] - 1), found[1])

    patch.setattr(RoundStore, "next_opening", numbered)


def one_word(patch: Patch) -> None:
    patch.setattr(Committee, "needed_to_exclude", 1)


def left_in(patch: Patch) -> None:
    def merged(*args: Any) -> None:
        merge_sums(*args[:4])

    patch.setattr(forming, "merge_sums", merged)


def untold(patch: Patch) -> None:
    patch.setattr(RoundRecord, "failure_of", lambda *_: None)


def result_unchecked(patch: Patch) -> None:
    patch.setattr(opening, "check_range", lambda *_: None)
    patch.setattr(kahe, "check_padding", lambda *_: None)
    patch.setattr(kahe, "largest_error", lambda *_: 1 << 40)


def unbound(patch: Patch) -> None:
    patch.setattr(updates_rules, "check_binding", lambda *_: None)


MUTANTS = (
    Mutant("unsynced blobs", "a receipt is given for bytes that a power cut takes away", unsynced),
    Mutant("receipt before row", "a receipt is given before the transaction commits", early_receipt),
    Mutant("repeated enters", "a repeated upload is put into the open round as well", repeated_enters),
    Mutant("greedy sweep", "the sweep does not ask what rounds still need", greedy_sweep),
    Mutant("shared bytes go", "a blob goes when the first of its updates is folded", shared_bytes_go),
    Mutant("dropped early", "a round's bytes go before it is published", dropped_early),
    Mutant("published twice", "publication does not look at lease and state", published_twice),
    Mutant("folded twice", "a checkpoint does not mark all that it has folded", folded_twice),
    Mutant("sealed again", "a device encrypts again what it may have sent before", sealed_again),
    Mutant("forks forgotten", "a holder votes for a second manifest of a number", forks),
    Mutant("overlaps accepted", "a holder votes for an update in a second manifest", overlaps),
    Mutant("decided late", "a holder's vote is durable after it has left", decided_late),
    Mutant("uncertified", "a holder releases its share without a certificate", uncertified),
    Mutant("counted twice", "a certificate counts one voter twice", counted_twice),
    Mutant("beyond the plan", "a holder votes for any opening number", beyond_the_plan),
    Mutant("too few", "a holder votes for sums of a single update", too_few),
    Mutant("binding screening", "a holder records what it only screens", binding_screening),
    Mutant("number again", "the server uses an opening number twice", number_again),
    Mutant("one word", "one holder's word leaves an update out", one_word),
    Mutant("left in", "an update that was left out stays in the sum", left_in),
    Mutant("result unchecked", "whatever shares open to is published", result_unchecked),
    Mutant("untold", "a client is not told that its update was left out", untold),
    Mutant("epoch unchecked", "the server takes an update of another epoch", unbound),
)


@dataclass
class Outcome:
    """`schedules` until it was found; `invariant` is empty for a survivor, `error` for a mutant that works."""

    schedules: int = 0
    invariant: str = ""
    error: str = ""


def hunt(mutant: Mutant, limit: int = LIMIT) -> Outcome:
    """Run schedules until an invariant breaks. Whatever else is raised says that the mutant itself is broken."""
    outcome = Outcome()
    mute()

    def check(schedule: Schedule) -> None:
        outcome.schedules += 1
        run(schedule)

    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch)
        try:
            explore(check, limit, SEED, shrink=False)
        except Violation as violation:
            outcome.invariant = violation.name
        except Exception as error:
            outcome.error = "".join(traceback.format_exception(error))
    return outcome


def main() -> None:
    fix_hashes("tests.simulation.mutants")
    table = Table("mutant", "planted bug", "schedules", "broken invariant", title="Planted bugs")
    parser = argparse.ArgumentParser("tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--sample", type=int, default=len(MUTANTS), metavar="N", help="N of them, others every day")
    given = parser.parse_args()
    if unknown := set(given.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"no mutant {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    chosen = Random(date.today().toordinal()).sample(chosen, min(given.sample, len(chosen)))
    console, survivors = Console(), 0
    with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for mutant, found in zip(chosen, pool.imap(hunt, chosen), strict=True):
            survivors += not found.invariant
            console.print(f"{mutant.name}: {found.schedules} {found.invariant}{found.error}", markup=False)
            verdict = found.invariant or f"[bold red]{'the mutant is broken' if found.error else 'survived'}"
            table.add_row(mutant.name, mutant.why, str(found.schedules), verdict)
    console.print(table)
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
