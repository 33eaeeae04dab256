"""A holder that comes back from a backup must not open what the one before it may have opened."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from he_authority.enrollment import check_renewal, issue_credential
from he_authority.tasks import next_epoch
from he_holder import keyring
from he_holder.backup import Backup, backup, restore
from he_holder.epochs import state_of
from he_holder.holder import KeyHolder
from he_holder.ledger import Ledger
from he_party import keyfile
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, REQUEST_FILE, create
from he_party.identity import Identity
from he_party.keyfile import KeyRecord, read_private, write_private
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import fingerprint, jwk_x, read_unverified
from he_protocol.messages import Cnf, Credential, EnrollRequest, Jwk
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import BAD_COMMITTEE, BAD_KEY_FILE, LEDGER_MISMATCH, NOT_ADDRESSED, UPDATE_OPENED_BEFORE
from he_testing.fake_server import FakeServer, key_bodies
from he_testing.problems import expect_problem
from tests.support.holders import line_to, open_round
from tests.support.openings import Sent, ask, combine, send_kahe
from tests.support.parties import NOW, World, random_integers
from tests.support.seizure import keys_in

D = 40
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """PBKDF2 as asked for takes a quarter of a second."""
    monkeypatch.setattr(keyfile, "PBES2_ROUNDS", 1000)


@asynccontextmanager
async def holder_in(directory: Path) -> AsyncIterator[KeyHolder]:
    identity, ledger = Identity.load(directory, PASSPHRASE), await Ledger.open(directory / "ledger.db")
    try:
        yield KeyHolder(identity, ledger, directory, least_f=0, passphrase=PASSPHRASE, clock=lambda: NOW)
    finally:
        await ledger.close()


@dataclass
class Scene:
    """A committee of one, so that the server needs nobody else; its folder, and a server that lies."""

    world: World
    server: FakeServer
    home: Path

    def offer(self, sent: list[Sent], number: int) -> None:
        request = ask(self.world, [one.update for one in sent], number=number)
        self.server.offer(request, key_bodies([(one.update, one.body["shares"]) for one in sent]))

    async def open(self, holder: KeyHolder, sent: list[Sent], number: int) -> Integers:
        """What the server reads of one round."""
        async with line_to(self.server.url, holder) as line:
            await open_round(holder, self.world.task, number, line)
        _, body = self.server.shares[number, holder.identity.name]
        return combine(self.world, {0: body}, sent)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    plan = {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0, "threshold": 1}
    world = World(1, plan, (TensorSpec("w", (D,)),))
    home, who = tmp_path / "home", world.committee[0]
    write_private(home / KEY_FILE, KeyRecord(who.name, who.key.public, who.key.private), PASSPHRASE)
    (home / CREDENTIAL_FILE).write_text(who.credential)
    (home / AUTHORITY_FILE).write_text(jwk_x(who.authority))
    async with FakeServer(world.task, committee=world.committee) as server:
        async with holder_in(home) as holder:
            holder.keyring.add(world.hpke[0])
            await holder.join(world.task, server.url)
        yield Scene(world, server, home)


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_difference_of_two_sums_needs_a_ledger_that_forgot_the_first(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """An operator restores an old backup and, to go on at once, puts the old key files beside it.

    The server has a round with the victim opened before, and one without it after.
    """
    sent = [send_kahe(scene.world, name, random_integers(D, seed, 1000)) for seed, name in enumerate("vabc")]
    victim, others = sent[0], sent[1:]
    scene.offer(sent, 1)
    scene.offer(others, 2)
    file, again = tmp_path / "backup", tmp_path / "again"
    async with holder_in(scene.home) as live:
        await backup(live, file)
        everybody = await scene.open(live, sent, 1)
        with expect_problem(UPDATE_OPENED_BEFORE):
            await scene.open(live, others, 2)  # the live holder knows
    await restore(file, again, PASSPHRASE, NOW)
    shutil.copytree(scene.home / "hpke", again / "hpke", dirs_exist_ok=True)
    if not guarded:
        monkeypatch.setattr(keyring, "check_ledger", lambda record, ledger: None)
    async with holder_in(again) as clone:
        if guarded:
            with expect_problem(LEDGER_MISMATCH):
                await scene.open(clone, others, 2)
            assert (2, "holder-0") not in scene.server.shares
        else:
            difference = everybody - await scene.open(clone, others, 2)
            assert np.abs(difference - victim.integers).max() <= 8 * 6.4 * 4  # the victim's own update


async def test_a_restored_holder_opens_nothing_of_the_epochs_before(scene: Scene, tmp_path: Path) -> None:
    """Nor of one that was joined after the backup, which the backup's ledger does not know."""
    file, again = tmp_path / "backup", tmp_path / "again"
    later = scene.world.signed(scene.world.task.config, name="later")
    async with holder_in(scene.home) as live:
        await backup(live, file)
        await live.join(later, scene.server.url)
    await restore(file, again, PASSPHRASE, NOW)
    async with holder_in(again) as clone:
        for task in (scene.world.task, later):
            assert await state_of(clone, task) == "closed"
            with expect_problem(BAD_COMMITTEE, "another HPKE key"):
                await clone.join(task, scene.server.url)
        assert [url for _, url in await clone.ledger.joined()] == [scene.server.url]


async def test_a_restored_holder_takes_part_in_the_next_epoch(scene: Scene, tmp_path: Path) -> None:
    world, again = scene.world, tmp_path / "again"
    async with holder_in(scene.home) as live:
        await backup(live, tmp_path / "backup")
    await restore(tmp_path / "backup", again, PASSPHRASE, NOW)
    request = (again / REQUEST_FILE).read_text().strip()
    check_renewal(request, (again / CREDENTIAL_FILE).read_text().strip(), world.authority.key.public)
    credential = issue_credential(world.authority.key, request, "holder", now=NOW, days=1)
    task = world.signed(next_epoch(world.task.config, [credential], world.authority.key.public, bytes(32)))
    async with holder_in(again) as clone:
        await clone.join(task, scene.server.url)
        assert await state_of(clone, task) == "open"


async def test_the_live_holder_goes_on_after_its_backup(scene: Scene, tmp_path: Path) -> None:
    sent = [send_kahe(scene.world, name, random_integers(D, seed, 1000)) for seed, name in enumerate("abc")]
    scene.offer(sent, 1)
    async with holder_in(scene.home) as live:
        await backup(live, tmp_path / "backup")
        left = await scene.open(live, sent, 1) - np.sum([one.integers for one in sent], axis=0)
    assert np.abs(left).max() <= 8 * 6.4 * np.sqrt(3)


async def test_a_backup_opens_nothing_and_has_the_history(scene: Scene, tmp_path: Path) -> None:
    """Also to somebody with the passphrase: an old tape does not bring a destroyed epoch back."""
    sent = [send_kahe(scene.world, name, random_integers(D, seed, 1000)) for seed, name in enumerate("abc")]
    scene.offer(sent, 1)
    file = tmp_path / "backup"
    async with holder_in(scene.home) as live:
        await scene.open(live, sent, 1)
        await live.ledger.refused(scene.world.task, 7, ProblemError(LEDGER_MISMATCH, "kept"), NOW, "token")
        await backup(live, file)
        name, private = live.ledger.name, scene.world.hpke[0].private
    assert file.stat().st_mode & 0o777 == 0o600
    record = read_private(file, Backup, PASSPHRASE, limit=1 << 30)
    assert private not in record.ledger
    assert repr(record) == "Backup(identity=KeyRecord(name='holder-0'))"
    again = tmp_path / "again"
    await restore(file, again, PASSPHRASE, NOW)
    assert scene.world.hpke[0] not in keys_in(again)
    async with holder_in(again) as clone:
        assert clone.ledger.name != name
        assert [vote.round for vote in await clone.ledger.votes(scene.world.task.hash)] == [1]
        assert [refusal.round for refusal in await clone.ledger.refusals(scene.world.task.hash)] == [7]
        assert clone.identity.key == scene.world.committee[0].key


async def test_a_large_ledger_fits(scene: Scene, tmp_path: Path) -> None:
    """More than the largest message of the protocol."""
    async with holder_in(scene.home) as live:
        for number in range(3):
            await live.ledger.refused(
                scene.world.task, number, ProblemError(LEDGER_MISMATCH, "x"), NOW, str(number) * (2 << 20)
            )
        await backup(live, tmp_path / "backup")
    await restore(tmp_path / "backup", tmp_path / "again", PASSPHRASE, NOW)
    with closing(sqlite3.connect(tmp_path / "again" / "ledger.db")) as ledger:
        assert ledger.execute("SELECT sum(length(manifest)) FROM refusals").fetchone() == (6 << 20,)
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_backups_that_are_refused(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    async with holder_in(scene.home) as live:
        live.passphrase = ""
        with expect_problem(BAD_KEY_FILE, "needs a passphrase"):
            await backup(live, file)
        live.passphrase = PASSPHRASE
        await backup(live, file)
        before = file.read_bytes()
        with expect_problem(BAD_KEY_FILE, "not overwritten"):
            await backup(live, file)
    assert file.read_bytes() == before
    with expect_problem(BAD_KEY_FILE, "is not empty"):
        await restore(file, scene.home, PASSPHRASE, NOW)
    with expect_problem(BAD_KEY_FILE, "does not open"):
        await restore(file, tmp_path / "again", PASSPHRASE + "!", NOW)
    with expect_problem(BAD_KEY_FILE, "No such file"):
        await restore(tmp_path / "missing", tmp_path / "again", PASSPHRASE, NOW)
    assert not (tmp_path / "again").exists()


async def test_a_restore_that_is_cut_short_leaves_no_holder(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose ledger would still have the name that the old keys belong to."""
    async with holder_in(scene.home) as live:
        await backup(live, tmp_path / "backup")

    async def crash(_: Ledger) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(Ledger, "rename", crash)
    with pytest.raises(OSError, match="power cut"):
        await restore(tmp_path / "backup", tmp_path / "again", PASSPHRASE, NOW)
    with expect_problem(BAD_KEY_FILE, KEY_FILE):
        async with holder_in(tmp_path / "again"):
            pass


def test_a_renewal_is_for_the_same_party(tmp_path: Path) -> None:
    world = World(1, {"threshold": 1})
    who, authority = world.committee[0], world.authority.key
    honest = EnrollRequest(who.name, "holder", who.key.public, int(NOW), world.hpke[0].public)
    check_renewal(who.key.sign(honest), who.credential, authority.public)
    stranger = create(tmp_path, who.name, "holder", NOW)  # the same name, another key
    for request in (
        stranger,
        who.key.sign(replace(honest, name="other")),
        who.key.sign(replace(honest, role="server")),
    ):
        with expect_problem(NOT_ADDRESSED, "another party"):
            check_renewal(request, who.credential, authority.public)
    old = Credential(fingerprint(authority.public), who.name, "holder", 0, 1, Cnf(Jwk(jwk_x(who.key.public))))
    check_renewal(who.key.sign(honest), authority.sign(old), authority.public)
    assert read_unverified(stranger, EnrollRequest).name == who.name
