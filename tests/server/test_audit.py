"""The audit log: what is written with what happens, and that no past can be rewritten unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import text
from typer.testing import CliRunner

from he_protocol import documents, paths, problems
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import verify
from he_protocol.messages import AuditHead
from he_server.cli.main import app
from he_server.rules.audit_chain import GENESIS, Entry, chained, verify_chain
from he_server.store.engine import make_engine

from .conftest import both
from .world import World


def _log(count: int = 5) -> list[Entry]:
    entries: list[Entry] = []
    for seq in range(1, count + 1):
        previous = bytes.fromhex(entries[-1].hash) if entries else GENESIS
        entries.append(chained(Entry(seq, 1000.5 + seq, "round-closed", "ab" * 32, seq, '{"updates":3}'), previous))
    return entries


def _head(entries: list[Entry]) -> AuditHead:
    return AuditHead("aggregator", entries[-1].seq, bytes.fromhex(entries[-1].hash), 0)


def _rewritten(entries: list[Entry]) -> list[Entry]:
    """The second entry changed and all hashes made again: a log that is whole in itself."""
    made: list[Entry] = []
    for entry in entries:
        changed = replace(entry, detail="{}") if entry.seq == 2 else entry
        made.append(chained(changed, bytes.fromhex(made[-1].hash) if made else GENESIS))
    return made


def test_a_whole_log() -> None:
    entries = _log()
    assert verify_chain([]) == (0, GENESIS)
    assert verify_chain(entries) == (5, bytes.fromhex(entries[-1].hash))
    for pinned in (entries, entries[:3]):
        assert verify_chain(entries, _head(pinned))[0] == 5
    assert verify_chain(entries, AuditHead("aggregator", 0, GENESIS, 0))[0] == 5


TAMPERED: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "changed": lambda log: [*log[:1], replace(log[1], detail='{"updates":4}'), *log[2:]],
    "time": lambda log: [*log[:1], replace(log[1], time=0.0), *log[2:]],
    "removed": lambda log: [*log[:1], *log[2:]],
    "removed and renumbered": lambda log: [*log[:1], *(replace(e, seq=e.seq - 1) for e in log[2:])],
    "first removed": lambda log: log[1:],
    "reordered": lambda log: [log[0], log[2], log[1], *log[3:]],
    "swapped under their numbers": lambda log: [log[0], replace(log[2], seq=2), replace(log[1], seq=3), *log[3:]],
    "relinked": lambda log: [*log[:1], chained(replace(log[1], detail="{}"), bytes.fromhex(log[0].hash)), *log[2:]],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_found(how: str) -> None:
    with pytest.raises(ProblemError) as refused:
        verify_chain(TAMPERED[how](_log()))
    assert refused.value.problem is problems.AUDIT_BROKEN


@pytest.mark.parametrize("how", [_rewritten, lambda log: log[:-1], lambda _log: []])
def test_a_pinned_head_finds_what_a_chain_alone_cannot(how: Callable[[list[Entry]], list[Entry]]) -> None:
    entries = _log()
    verify_chain(how(entries))
    with pytest.raises(ProblemError) as refused:
        verify_chain(how(entries), _head(entries))
    assert refused.value.problem is problems.AUDIT_BROKEN


@both
async def test_what_happens_to_rounds_is_written(world: World) -> None:
    await world.fill(3)
    await world.form(1)
    manifest, _ = await world.manifest(1)
    await world.open(1)
    await world.fill(1, first=7, base_version=1)
    world.clock.now += 60
    await world.work()
    entries = await world.server.store.audit.entries()
    assert [(entry.event, entry.round) for entry in entries] == [
        ("task-added", 0),
        ("round-closed", 1),
        ("round-screened", 1),
        ("round-opening", 1),
        ("vote-cast", 1),
        ("vote-cast", 1),
        ("share-accepted", 1),
        ("share-accepted", 1),
        ("share-accepted", 1),
        ("round-published", 1),
        ("round-failed", 2),
    ]
    details = [json.loads(entry.detail) for entry in entries]
    assert details[1] == {"updates": 3}
    for said in details[2:6]:
        assert said["manifest"] == (await world.server.store.rounds.get(world.task.id, 1)).manifest_hash
    assert [said["holder"] for said in details[4:6]] == ["holder-0", "holder-1"]
    assert details[9]["model"] == (await world.server.store.models.get(world.task.id, 1)).sha256
    assert details[10]["problem"] == problems.TOO_FEW_CLIENTS.urn
    assert manifest
    answer = await world.get(None, paths.AUDIT_HEAD, documents.AuditStatus)
    head = verify(answer.head, AuditHead, world.server_key.public)
    assert (head.seq, head.hash) == verify_chain(entries)
    assert (head.server, head.time) == ("aggregator", int(world.clock()))
    assert "hushsum_audit_entries 11.0" in await (await world.call(None, "GET", "/metrics")).text()


@both
async def test_simultaneous_changes_make_one_chain(world: World) -> None:
    names = [f"task-{number}" for number in range(8)]
    await asyncio.gather(*(world.add_task(name=name) for name in names))
    entries = await world.server.store.audit.entries()
    assert verify_chain(entries)[0] == len(entries) == 9


async def test_a_change_that_did_not_happen_is_not_in_the_log(world: World) -> None:
    await world.add_task(name="second")
    before = await world.server.store.audit.head()
    with pytest.raises(ProblemError):
        await world.server.store.tasks.add(world.task, "0" * 64, world.clock())  # another initial model
    assert await world.server.store.audit.head() == before


async def test_the_command(world: World, tmp_path: Path) -> None:
    await world.fill(3)
    pinned = tmp_path / "head.json"
    pinned.write_bytes(msgspec.json.encode(await world.get(None, paths.AUDIT_HEAD, documents.AuditStatus)))
    url = world.server.settings.database

    def run(*arguments: str) -> tuple[int, str]:
        command = [
            "audit",
            "--data-dir",
            str(tmp_path),
            "--database-url",
            world.server.settings.database_url,
            *arguments,
        ]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.output

    async def command(*arguments: str) -> tuple[int, str]:
        return await asyncio.to_thread(run, *arguments)

    shown = msgspec.json.decode((await command("--format", "json"))[1], type=list[Entry])
    assert [entry.event for entry in shown] == ["task-added", "round-closed"]
    code, output = await command("--verify", "--pinned", str(pinned))
    assert (code, "whole: 2 entries, head " in output, "the pinned one, 2" in output) == (0, True, True)
    assert "round-closed" in (await command("--since", "2020-01-01", "--format", "json"))[1]
    assert "round-closed" not in (await command("--since", "2999-01-01", "--format", "json"))[1]
    assert (await command("--since", "yesterday"))[0] == 2
    engine = make_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM audit WHERE seq = 2"))
    assert (await command("--verify"))[0] == 0  # cut short: whole in itself
    code, output = await command("--verify", "--pinned", str(pinned))
    assert (code, "[audit-broken]" in output) == (2, True)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE audit SET detail = '{}' WHERE seq = 1"))
    await engine.dispose()
    assert (await command())[0] == 0  # nobody looks
    code, output = await command("--verify")
    assert (code, "[audit-broken]" in output) == (2, True)
