"""`he-server doctor`: what would keep this server from doing its work, and what to do about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from he_migrations.run import newest
from he_party.kernels import warm
from he_protocol.errors import ProblemError, printable
from he_protocol.identity.revocation import Revocations
from he_protocol.problems import DATABASE_UNAVAILABLE
from he_protocol.task import Task
from he_server.jobs.garbage import ROUND_FOLDERS, TASK_FOLDERS, orphans
from he_server.rules.audit_chain import verify_chain
from he_server.rules.records import waiting_for
from he_server.services.context import open_blobs
from he_server.services.installation import check_database
from he_server.services.kernels import kernel_steps
from he_server.settings import Settings
from he_server.store import Store
from he_server.store.engine import make_engine

SLOW_SYNC_SECONDS = 0.5
SKEW_SECONDS = 5.0
LATE_SECONDS = 60.0
"""How long after a deadline, or a lease's end, a living worker has surely taken care of it."""
ORPHAN_SECONDS = 2 * 3600.0
RENEWAL_DAYS = 7.0
_PROBE = "doctor"


class Finding(msgspec.Struct, frozen=True):
    """One check's outcome: `wrong` needs an operator now, a `warning` soon."""

    check: str
    level: Literal["ok", "warning", "wrong"]
    found: str
    advice: str = ""


Check: TypeAlias = Callable[[Settings, Store], Awaitable[Finding]]


async def examine(settings: Settings) -> list[Finding]:
    """Run every check; one that cannot be made is wrong itself. Raises `bad-settings` for a nonsensical URL."""
    store = Store(make_engine(settings.database))
    try:
        return [await _outcome(name, check, settings, store) for name, check in CHECKS.items()]
    finally:
        await store.close()


async def _outcome(name: str, check: Check, settings: Settings, store: Store) -> Finding:
    try:
        return await check(settings, store)
    except ProblemError as refusal:
        cause = f" ({refusal.__cause__})" if refusal.__cause__ is not None else ""
        told_by = "database" if refusal.problem == DATABASE_UNAVAILABLE else name
        return Finding(name, "wrong", printable(f"{refusal}{cause}"), _ADVICE.get(told_by, "see the message"))
    except (OSError, SQLAlchemyError) as error:
        return Finding(name, "wrong", str(error), _ADVICE.get(name, "see the message"))


async def _settings(settings: Settings, _store: Store) -> Finding:
    if settings.tls_cert is None and settings.host not in {"127.0.0.1", "::1", "localhost"}:
        advice = "set tls_cert and tls_key, or see to it that a proxy in front speaks TLS"
        return Finding("settings", "warning", f"serves {settings.host} without TLS", advice)
    return Finding("settings", "ok", f"{settings.host}:{settings.port}, data in {settings.data_dir}")


async def _key(settings: Settings, _store: Store) -> Finding:
    key = await asyncio.to_thread(settings.read_key)
    await asyncio.to_thread(settings.read_authority)
    return Finding("keys", "ok", f"{key.name}: key closed to others, authority known")


async def _database(settings: Settings, store: Store) -> Finding:
    await check_database(settings)
    wanted = newest("server")
    found = await store.database.revision()
    if found != wanted:
        advice = "stop older servers, then run `he-server migrate`"
        return Finding("database", "wrong", f"schema {found}, this program needs {wanted}", advice)
    return Finding("database", "ok", f"answers, schema {found}")


async def _clock(_settings: Settings, store: Store) -> Finding:
    before = time.time()
    theirs = await store.database.time()
    skew = theirs - (before + time.time()) / 2
    level: Literal["ok", "wrong"] = "ok" if abs(skew) <= SKEW_SECONDS else "wrong"
    advice = "" if level == "ok" else "run NTP on both hosts: leases and deadlines compare their clocks"
    return Finding("clock", level, f"{skew:+.1f} s against the database", advice)


async def _blobs(settings: Settings, _store: Store) -> Finding:
    blobs = open_blobs(settings)
    start = time.monotonic()
    await asyncio.to_thread(blobs.prepare)
    await asyncio.to_thread(blobs.put, _PROBE, b"ok")
    seconds = time.monotonic() - start
    await asyncio.to_thread(blobs.delete, _PROBE)
    found = f"writable, a durable write takes {1000 * seconds:.0f} ms"
    if seconds > SLOW_SYNC_SECONDS:
        return Finding("blobs", "warning", found, "every upload waits for this twice: use a faster disk")
    return Finding("blobs", "ok", found)


async def _space(settings: Settings, _store: Store) -> Finding:
    free = await asyncio.to_thread(open_blobs(settings).free)
    found, least = f"{free / 2**20:.0f} MiB free", settings.min_free_bytes
    if free < least:
        advice = f"uploads are refused below {least / 2**20:.0f} MiB (min_free_bytes): make room in {settings.data_dir}"
        return Finding("space", "wrong", found, advice)
    if free < 2 * least:
        return Finding("space", "warning", found, f"uploads are refused below {least / 2**20:.0f} MiB: make room soon")
    return Finding("space", "ok", found)


async def _revocations(settings: Settings, store: Store) -> Finding:
    token = await store.revocations.newer(0)
    if not token:
        return Finding("revocations", "ok", "no list, and none needed yet")
    authority = await asyncio.to_thread(settings.read_authority)
    known = await asyncio.to_thread(Revocations.read, token, authority)
    left = (known.valid_until - time.time()) / 86400
    found = f"list {known.number}, {len(known.keys)} keys, good for {left:.1f} days"
    if left < RENEWAL_DAYS:
        advice = "nothing is opened once it expires: `he-authority revoke --previous ...`, `he-server revoke`"
        return Finding("revocations", "warning" if left > 0 else "wrong", found, advice)
    return Finding("revocations", "ok", found)


async def _orphans(settings: Settings, store: Store) -> Finding:
    found = await orphans(open_blobs(settings), store, ORPHAN_SECONDS)
    if found:
        advice = "a running worker removes them every hour: is one running? They hold nothing that is needed"
        return Finding("orphans", "warning", f"{len(found)} blobs without a row, {found[0]} for one", advice)
    return Finding("orphans", "ok", f"none in {', '.join(ROUND_FOLDERS + TASK_FOLDERS)}")


async def _rounds(settings: Settings, store: Store) -> Finding:
    status = await store.status.summary(time.time() - LATE_SECONDS)
    found = ", ".join(f"{count} {state}" for state, count in status.rounds.items())
    waiting = await _waiting(settings, store)
    if waiting:
        advice = (
            "start the holders that are missing; see what the others refuse in docs/operations.md, HushSumRoundOverdue"
        )
        return Finding("rounds", "warning", "; ".join(waiting), advice)
    if status.overdue or status.stuck:
        late = f"{status.overdue} rounds overdue, {status.stuck} leases expired"
        return Finding("rounds", "wrong", late, "no worker does its work: start a server, or read its log")
    return Finding("rounds", "ok", found)


async def _waiting(settings: Settings, store: Store) -> list[str]:
    """The rounds that wait for key holders longer than they should, each with what these said last."""
    late = [r for r in await store.rounds.live() if r.manifest and r.opening_deadline <= time.time() - LATE_SECONDS]
    found = []
    for record in late:
        token = (await store.tasks.get(record.task)).token
        task = Task.from_token(token, await asyncio.to_thread(settings.read_authority))
        (status,) = await store.answers.statuses(task, [record])
        found.append(f"round {record.number} of {task.config.name!r} waits: {waiting_for(status)}")
    return found


async def _audit(_settings: Settings, store: Store) -> Finding:
    entries = await store.audit.entries()
    seq, digest = await asyncio.to_thread(verify_chain, entries)
    return Finding("audit", "ok", f"{seq} entries, head {digest.hex()}")


async def _kernels(_settings: Settings, _store: Store) -> Finding:
    done = await asyncio.to_thread(warm, kernel_steps())
    if done.compiled:
        advice = "compiled just now; if this comes again, let NUMBA_CACHE_DIR name a writable directory"
        return Finding("kernels", "warning", f"the cache was cold: {done}", advice)
    return Finding("kernels", "ok", f"the cache is warm: {done}")


CHECKS: dict[str, Check] = {
    "settings": _settings,
    "keys": _key,
    "database": _database,
    "clock": _clock,
    "blobs": _blobs,
    "space": _space,
    "revocations": _revocations,
    "orphans": _orphans,
    "rounds": _rounds,
    "audit": _audit,
    "kernels": _kernels,
}
_ADVICE = {
    "keys": "`he-server init` makes a key; the authority gives out authority.pub",
    "database": "is it running, is database_url right, did `he-server migrate` run?",
    "blobs": "data_dir must be writable for the server's user and have room",
    "space": "data_dir must exist",
    "audit": "the database was changed from outside: keep it as it is, compare with a backup and with pinned heads",
}
