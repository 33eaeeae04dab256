"""From a closed round to the manifest that key holders vote for: one that they screen first, then the final one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from he_protocol.documents import Failure
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Manifest, Screening, UpdateHeader
from he_protocol.problems import BUDGET_EXHAUSTED, TOO_FEW_CLIENTS
from he_protocol.task import Task
from he_server.blobs import keys
from he_server.blobs.store import BlobStore
from he_server.blobs.vectors import Term, is_intact, merge_sums
from he_server.jobs.outcomes import fail
from he_server.rules.manifests import Circumstances, Plan, excluded_by_holders, faults, form, plan_round
from he_server.rules.records import AnswerRecord, RoundRecord, UpdateRecord
from he_server.services.context import ServerContext
from he_server.services.receive import delete_blobs
from he_server.store.rounds import Lease


def too_old(task: Task, record: RoundRecord, now: float) -> bool:
    """Whether a manifest that is only being screened should be formed again: holders may find it too old."""
    formed = read_unverified(record.manifest, Manifest).formed
    return now - formed > task.config.rounds.update_lifetime / 2


def screened(task: Task, record: RoundRecord, answers: Sequence[AnswerRecord]) -> bool:
    """Whether as many holders have screened a round's updates as must vote for it."""
    said = {a.holder for a in answers if a.kind == "screening" and a.manifest_hash == record.manifest_hash}
    return len(said) >= task.committee.agreement


async def form_manifest(server: ServerContext, task: Task, lease: Lease) -> None:
    """A closed round's next manifest: the one to be screened, or the final one."""
    record = lease.round
    try:
        if not record.manifest or too_old(task, record, server.clock()):
            await begin_screening(server, task, lease)
        else:
            server.metrics.observe_stages(await begin_opening(server, task, lease))
    except ProblemError as refusal:
        if refusal.problem not in {TOO_FEW_CLIENTS, BUDGET_EXHAUSTED}:
            raise
        await fail(server, task, lease, refusal.problem, refusal.detail, {})


async def begin_screening(server: ServerContext, task: Task, lease: Lease) -> None:
    """Show key holders what the server would have them open. Raises `too-few-clients` or `budget-exhausted`."""
    updates = await server.store.updates.of_round(lease.round.id)
    numbered = await server.store.rounds.next_opening(lease.round)
    if numbered is None:  # an earlier round is not over: another worker was wrong about it
        await server.store.rounds.release(lease, lease.round.tried)
        return
    opening, after = numbered
    if opening > (most := task.config.rounds.max_openings):
        spent = "every opening of the epoch has been used; the authority starts a new one"
        raise ProblemError(BUDGET_EXHAUSTED, spent, expected=f"opening {most} at most", got=opening)
    now = await _circumstances(server, task, after)
    found = await server.threads.run(faults, task, server.keys.authority, updates, now)
    plan = await _plan(server, task, updates, found)
    manifest = form(task, lease.round.number, opening, now, plan, updates)
    token = await server.threads.run(server.keys.own.signing.sign, manifest)
    deadline = lease.round.opening_deadline or server.clock() + task.config.rounds.opening_seconds
    await server.store.rounds.begin_screening(lease, opening, token, plan, deadline)
    server.news.heard(task.id)


async def begin_opening(server: ServerContext, task: Task, lease: Lease) -> dict[str, float]:
    """Add up what stays, and ask for votes. Answers the seconds spent by stage. Raises `too-few-clients`."""
    start, record = time.monotonic(), lease.round
    updates = await server.store.updates.of_round(record.id)
    draft = read_unverified(record.manifest, Manifest)
    said = [a for a in await server.store.answers.of_round(record.id) if a.kind == "screening"]
    current = [read_unverified(a.token, Screening) for a in said if a.manifest_hash == record.manifest_hash]
    # The moment stays: later, a credential could have expired that holders have found in order. Revocations are news.
    now = Circumstances(draft.formed, draft.model_version, await server.revocations.current())
    found = await server.threads.run(faults, task, server.keys.authority, updates, now)
    before = {one.update: one.failure for one in record.excluded}
    said_by_holders = excluded_by_holders(task, current)
    more = {u.update_id: said_by_holders[u.update_id] for u in updates if u.update_id in said_by_holders}
    plan, token = await _plan(server, task, updates, more | found | before), record.manifest
    if plan.documents != record.excluded:
        manifest = form(task, record.number, draft.opening, now, plan, updates)
        token = await server.threads.run(server.keys.own.signing.sign, manifest)
    sums = await server.store.folding.accumulators(record.id)
    for bucket in sorted(set(plan.buckets.values())):
        folded = {old for old, new in plan.buckets.items() if new == bucket}
        terms = [keys.accumulator_blob(item.blob) for item in sums if item.bucket in folded]
        out = [_term(u) for u in updates if u.bucket in folded and u.update_id in plan.excluded]
        await server.threads.run(merge_sums, task, server.blobs, terms, keys.total_blob(record.id, bucket), out)
    spent = time.monotonic() - start
    seconds = {"screen": max(0.0, server.clock() - record.closed_at - spent), "sum": spent}
    await server.store.rounds.begin_opening(
        lease, token, plan, server.clock() + task.config.rounds.opening_seconds, seconds
    )
    server.news.heard(task.id)
    gone = {keys.update_blob(update.blob) for update in updates}
    await delete_blobs(server, [*(keys.accumulator_blob(item.blob) for item in sums), *gone])
    return seconds


async def _circumstances(server: ServerContext, task: Task, after: int) -> Circumstances:
    """Now; not before `after`, should this machine's clock have gone back."""
    version = (await server.store.models.get(task.id)).version
    return Circumstances(max(int(server.clock()), after), version, await server.revocations.current())


async def _plan(
    server: ServerContext, task: Task, updates: Sequence[UpdateRecord], excluded: Mapping[str, Failure]
) -> Plan:
    """The round's plan, given what is left out; the bytes of these are looked at only where there are any."""
    gone = [u for u in updates if u.update_id in excluded]
    lost = frozenset(await server.threads.run(_lost, server.blobs, task, gone)) if gone else frozenset()
    return plan_round(task, updates, excluded, lost)


def _lost(blobs: BlobStore, task: Task, updates: Sequence[UpdateRecord]) -> list[str]:
    """Those whose bytes are not there, or not what was added up."""
    return [u.update_id for u in updates if not is_intact(task, blobs, *_term(u), _signed(task, u))]


def _signed(task: Task, update: UpdateRecord) -> bytes:
    name = task.section("sum").name
    return next(
        section.sha256 for section in read_unverified(update.header, UpdateHeader).sections if section.name == name
    )


def _term(update: UpdateRecord) -> Term:
    return keys.update_blob(update.blob), update.position
