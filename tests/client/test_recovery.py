"""A device never stops for ever: whatever one of its updates meets, the next ones go their way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_authority.enrollment import issue_credential
from he_client import HushSumClient
from he_client.attempt import Train
from he_client.rounds import train_rounds
from he_client.spool import KEPT_NOTES, EncryptedUpdate, Spool
from he_party.enrolling import CREDENTIAL_FILE, KEY_FILE, REQUEST_FILE, create
from he_party.keyfile import KeyRecord, read_private
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import SignedUpdate, UpdateHeader, from_json
from he_protocol.problems import (
    ALREADY_IN_ROUND,
    BAD_SETTINGS,
    DISK_FULL,
    EXPIRED_CREDENTIAL,
    MALFORMED,
    NOT_ADDRESSED,
    NOT_FOUND,
    PROBLEMS,
    REFUSED_BETWEEN,
    STALE_UPDATE,
    TOO_FEW_CLIENTS,
    UNAUTHENTICATED,
    UNREACHABLE,
    WRONG_SIZE,
    ProblemType,
)
from he_testing.problems import expect_problem
from tests.client.test_resend import ONCE, answer_of, seal, spooled
from tests.support.proxy import Proxy
from tests.support.service import Service

ZERO = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}


def states(client: HushSumClient, service: Service) -> dict[str, tuple[str, str]]:
    """State and problem of every update that the device knows."""
    return {one.update_id: (one.state, one.problem) for one in client.updates(service.task)}


def header(encrypted: EncryptedUpdate) -> UpdateHeader:
    return read_unverified(from_json(encrypted.head, SignedUpdate).header, UpdateHeader)


def renew(service: Service, number: int, *, days: float = 90.0, new_key: bool = False) -> None:
    """What the authority and the owner of a device do: another credential, perhaps for another key."""
    folder = service.folder(number)
    if new_key:
        for name in (KEY_FILE, REQUEST_FILE, CREDENTIAL_FILE):
            (folder / name).unlink()
        create(folder, folder.name, "client", service.clock())
    authority = read_private(service.root / "authority" / "authority.key", KeyRecord)
    request = (folder / REQUEST_FILE).read_text().strip()
    credential = issue_credential(authority.signing, request, "client", now=service.clock(), days=days)
    (folder / CREDENTIAL_FILE).write_text(credential)


@pytest.mark.parametrize("version", [-1, "3", 1.0, None, True, 1 << 63, np.float32(0), np.zeros(2, np.int64), b"0"])
async def test_what_is_no_version_is_refused_before_it_is_encrypted(service: Service, version: Any) -> None:
    async with service.client(1) as client:
        with expect_problem(BAD_SETTINGS, "base_version"):
            await client.submit(service.task, ZERO, base_version=version)
        assert client.updates(service.task) == []
        assert (await client.submit(service.task, ZERO, base_version=np.int64(0))).round == 1  # type: ignore[arg-type]


def _cut_head(update: EncryptedUpdate) -> None:
    (update.folder / "head").write_bytes(b"")


def _garble_head(update: EncryptedUpdate) -> None:
    (update.folder / "head").write_bytes(update.head[:40])


def _lose_section(update: EncryptedUpdate) -> None:
    update.sections[-1].unlink()


def _cut_section(update: EncryptedUpdate) -> None:
    update.sections[0].write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(_cut_head, MALFORMED), (_garble_head, MALFORMED), (_lose_section, WRONG_SIZE), (_cut_section, WRONG_SIZE)],
)
async def test_what_a_crash_damaged_is_dropped_and_holds_nothing_up(
    service: Service, damage: Any, problem: ProblemType
) -> None:
    async with service.client(1) as client:
        broken = await seal(client, service)
        damage(broken)
        whole = await seal(client, service)
        (sent,) = await client.resume(service.task)
        assert sent.update_id == whole.update_id
        assert states(client, service)[broken.update_id] == ("dropped", problem.slug)
        assert await client.resume(service.task) == []


async def test_folders_that_are_no_updates_hurt_nobody(service: Service) -> None:
    async with service.client(1) as client:
        whole = await seal(client, service)
        for name in ("lost+found", ".DS_Store", "AA", whole.update_id.upper()):
            (whole.folder.parent / name).mkdir(exist_ok=True)
        (whole.folder / "note").write_bytes(b"not a note")
        assert (await client.submit(service.task, ZERO, base_version=0)).round == 1
        assert list(states(client, service)) == [whole.update_id, *{*states(client, service)} - {whole.update_id}]


async def test_an_update_waits_while_its_credential_is_renewed(service: Service) -> None:
    renew(service, 1, days=0.001)  # 86 seconds: less than a round takes
    async with service.client(1) as client:
        waiting = await seal(client, service)
        assert await client.resume(service.task) == []
        assert states(client, service) == {waiting.update_id: ("waiting", EXPIRED_CREDENTIAL.slug)}
    renew(service, 1)
    async with service.client(1) as client:
        (sent,) = await client.resume(service.task)
    assert sent.update_id == waiting.update_id


async def test_an_update_of_a_device_that_enrolled_again_is_signed_again(service: Service) -> None:
    async with service.client(1) as client:
        waiting = await seal(client, service)
    renew(service, 1, new_key=True)
    async with service.client(1) as client:
        (sent,) = await client.resume(service.task)
    assert sent.update_id == waiting.update_id
    assert (await service.server.store.rounds.get(service.task.id, 1)).updates == 1


async def test_an_update_of_another_name_is_dropped(service: Service) -> None:
    async with service.client(1) as client:
        foreign = await seal(client, service)
    state = service.folder(2) / "state"
    state.mkdir(parents=True, exist_ok=True)
    (service.folder(1) / "state" / "updates").rename(state / "updates")
    async with service.client(2) as client:
        assert await client.resume(service.task) == []
        assert states(client, service) == {foreign.update_id: ("dropped", NOT_ADDRESSED.slug)}


async def test_a_clock_that_was_a_year_ahead_once(service: Service) -> None:
    async with service.client(1) as client:
        await client._encryptor(service.task)  # asks the server for the joint key, where there is one
        service.clock.ahead = 365 * 86400.0
        ahead = await seal(client, service)
        service.clock.ahead = 0.0
        (sent,) = await client.resume(service.task)
        assert sent.update_id == ahead.update_id
        assert abs(header(ahead).created - time.time()) < 60


async def test_a_clock_that_was_a_year_behind_once(service: Service) -> None:
    async with service.client(1) as client:
        await client._encryptor(service.task)
        service.clock.ahead = -365 * 86400.0
        old = await seal(client, service)
        service.clock.ahead = 0.0
        fresh = await seal(client, service)
        (sent,) = await client.resume(service.task)
        assert sent.update_id == fresh.update_id
        assert states(client, service)[old.update_id] == ("dropped", STALE_UPDATE.slug)


@pytest.mark.parametrize("years", [1, -1])
async def test_a_clock_that_is_wrong_while_an_update_waits_changes_nothing_of_it(service: Service, years: int) -> None:
    """It would be dropped as too old, or signed again with a time that makes it too old when the clock is right."""
    async with service.client(1) as client:
        waiting = await seal(client, service)
        head = waiting.head
    async with service.client(1, ahead=years * 365 * 86400.0) as client:
        assert await client.resume(service.task) == []
        assert states(client, service) == {waiting.update_id: ("waiting", UNAUTHENTICATED.slug)}
    assert waiting.head == head
    async with service.client(1) as client:
        (sent,) = await client.resume(service.task)
    assert sent.update_id == waiting.update_id


_OF_EACH_KIND = {(p.family, p.retry): p for p in PROBLEMS.values() if p.retry != "never" and p is not REFUSED_BETWEEN}


@pytest.mark.parametrize("problem", [*_OF_EACH_KIND.values(), ALREADY_IN_ROUND, UNREACHABLE], ids=lambda p: p.slug)
async def test_no_refusal_of_one_update_holds_up_the_next(service: Service, proxy: Proxy, problem: ProblemType) -> None:
    async with service.client(1, proxy.url, retry=ONCE) as client:
        first = await seal(client, service)
        proxy.faults["PUT"] = [answer_of(problem)]
        await client.resume(service.task)
        assert states(client, service) == {first.update_id: ("waiting", problem.slug)}
        second = await seal(client, service)
        sent = await client.resume(service.task)  # the one that was never refused comes first
        assert sent[0].update_id == second.update_id


async def test_a_server_that_cannot_be_reached_is_asked_once(service: Service, proxy: Proxy) -> None:
    async with service.client(1, proxy.url, retry=ONCE) as client:
        for _ in range(3):
            await seal(client, service)
        proxy.faults["PUT"] = ["lost"] * 3
        assert await client.resume(service.task) == []
        assert len(proxy.of("PUT")) <= 2  # aiohttp asks a second time by itself
        assert sorted(problem for _, problem in states(client, service).values()) == ["", "", UNREACHABLE.slug]


async def test_a_refused_submit_leaves_nothing_to_be_sent_later(service: Service) -> None:
    async with service.client(1) as client, service.client(2) as other, service.committee():
        await client.submit(service.task, ZERO, base_version=0)
        for _ in range(2):
            with expect_problem(ALREADY_IN_ROUND):
                await client.submit(service.task, ZERO, base_version=0)
        assert len(spooled(service)) == 1  # the one that was acknowledged
        await other.submit(service.task, ZERO, base_version=0)  # closes the round
        assert await client.resume(service.task) == []


@pytest.mark.parametrize("problem", [DISK_FULL, UNREACHABLE])
async def test_a_submit_that_may_have_arrived_is_kept(service: Service, proxy: Proxy, problem: ProblemType) -> None:
    async with service.client(1, proxy.url, retry=ONCE) as client:
        proxy.faults["PUT"] = [answer_of(problem)]
        with expect_problem(problem):
            await client.submit(service.task, ZERO, base_version=0)
        (sent,) = await client.resume(service.task)
        assert states(client, service) == {sent.update_id: ("acknowledged", "")}


async def test_a_submit_that_is_interrupted_while_it_waits_leaves_nothing(service: Service) -> None:
    async with service.client(1) as client:
        await client.submit(service.task, ZERO, base_version=0)
        waiting = asyncio.create_task(client.submit(service.task, ZERO, base_version=0, within=60.0))
        async with asyncio.timeout(20):
            while not service.server.metrics.updates.labels("already-in-round")._value.get():
                await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(spooled(service)) == 1


async def test_a_waiting_update_can_be_dropped(service: Service) -> None:
    async with service.client(1) as client:
        waiting = await seal(client, service)
        client.drop(service.task, waiting.update_id)
        with expect_problem(NOT_FOUND):
            client.drop(service.task, waiting.update_id)
        assert await client.resume(service.task) == []


def test_the_newest_of_those_that_were_dropped_are_listed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "updates", "task", ("b",))
    for number in range(KEPT_NOTES + 3):
        update = spool.begin(f"{number:032x}")
        update.sections[0].write_bytes(b"b")
        spool.commit(update, SignedUpdate("header", "credential"))
        spool.note(update, ProblemError(STALE_UPDATE, "too old"), float(number), dropped=True)
    assert {int(one.update_id, 16) for one in spool.listed()} == set(range(3, KEPT_NOTES + 3))
    assert spool.pending() == []


async def taken(
    client: HushSumClient, service: Service, train: Train, rounds: int = 1, **options: Any
) -> list[tuple[int | None, str]]:
    """Version and problem of each round."""
    found = []
    async for one in train_rounds(client, service.task, train, rounds, **options):
        found.append((one.version, one.refusal.problem.slug if one.refusal else ""))
    return found


async def test_a_failed_round_does_not_end_the_training(service: Service) -> None:
    async with service.committee(), service.client(1) as one, service.client(2) as two:
        mine = asyncio.create_task(taken(one, service, lambda _: ZERO, 2))
        async with asyncio.timeout(20):
            while not (await one.rounds(service.task))[0].updates:
                await asyncio.sleep(0.01)
        service.clock.ahead = service.task.config.rounds.collect_seconds + 1.0  # nobody else came
        async with asyncio.timeout(20):
            while (newest := (await one.rounds(service.task))[0]).round == 1 or not newest.updates:
                await asyncio.sleep(0.01)
        await two.submit(service.task, ZERO, base_version=0)
        assert await mine == [(None, TOO_FEW_CLIENTS.slug), (1, "")]


async def test_a_stale_update_is_made_again(service: Service, proxy: Proxy) -> None:
    trained = 0

    def train(_: Any) -> Any:
        nonlocal trained
        trained += 1
        return ZERO

    async with service.committee(), service.client(1, proxy.url) as one, service.client(2) as two:
        proxy.faults["PUT"] = [answer_of(STALE_UPDATE)]
        await two.submit(service.task, ZERO, base_version=0)
        assert await taken(one, service, train) == [(1, "")]
    assert trained == 2


async def test_what_no_further_round_would_mend_ends_it(service: Service, proxy: Proxy) -> None:
    async with service.client(1, proxy.url) as client:
        proxy.faults["PUT"] = [answer_of(EXPIRED_CREDENTIAL)]
        with expect_problem(EXPIRED_CREDENTIAL):
            await taken(client, service, lambda _: ZERO, 3)


INTERRUPTED = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
from he_party.console import command, run_async
from he_party.threads import abandonable

@command
def train() -> None:
    run_async(abandonable(lambda: (print("training", flush=True), time.sleep(60))))

import typer
try:
    train()
except typer.Exit as ended:
    raise SystemExit(ended.exit_code)
"""


def test_ctrl_c_stops_training_at_once() -> None:
    program = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.readline()
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 130
    assert b"Traceback" not in program.stderr.read()  # type: ignore[union-attr]
