"""`he-authority` and `he-holder`, as their users meet them: a folder, a committee of one, a server over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from he_authority.cli import app as authority_app
from he_holder.cli.main import app
from he_holder.ledger import Ledger
from he_holder.settings import Settings
from he_party import console
from he_party.enrolling import create
from he_party.http_transport import RetryPolicy
from he_party.identity import Identity
from he_party.keyfile import KeyRecord, read_private
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import valid_until
from he_protocol.identity.jws import fingerprint, public_from_jwk, read_unverified, verify
from he_protocol.messages import Credential, EnrollRequest
from he_protocol.problems import NOT_FOUND, STALE_UPDATE
from he_protocol.task import Task
from he_testing.fake_server import FakeServer, refusal
from tests.architecture.source import IMPORTABLE
from tests.support.holders import PLAN_FILE

PASSPHRASE = "correct horse battery staple"
PLAN = PLAN_FILE.format(scheme="ckks", profile="ckks-8192")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wide terminal without colours, and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    for name in list(os.environ):
        if name.startswith("HUSHSUM"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HUSHSUM_HOLDER_LEAST_F", "0")  # these are committees of one


def run(*args: object) -> Result:
    """`he-authority` where the first word is "authority", else `he-holder`."""
    program, words = (authority_app, args[1:]) if args[0] == "authority" else (app, args)
    return CliRunner().invoke(program, [str(word) for word in words], catch_exceptions=False)


def done(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuses(slug: str, *args: object) -> str:
    """Exit code 2 and one line that ends with the problem's stable name: no traceback."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("refused ")
    assert line.endswith(f"[{slug}]")
    assert result.stdout == ""
    return line


@dataclass
class Office:
    """An authority's folder, one holder, a server, a client, and a signed task."""

    folder: Path
    task: Task

    @property
    def holder(self) -> Path:
        return self.folder / "holder"


def enrolled(folder: Path, role: str) -> None:
    """Send the request, bring the credential and the authority's public key."""
    done(
        "authority",
        "enroll",
        folder / "enroll-request.jws",
        "--role",
        role,
        "--out",
        folder / "credential.jws",
        "--days",
        2,
    )
    (folder / "authority.pub").write_text(Path("authority/authority.pub").read_text())


@pytest.fixture
def office(tmp_path: Path) -> Office:
    done("authority", "init")
    done("init", "--name", "holder-0", "--data-dir", "holder")
    enrolled(Path("holder"), "holder")
    for role in ("server", "client"):
        create(Path(role), role, role, time.time())
        enrolled(Path(role), role)
    Path("plan.toml").write_text(PLAN)
    save_file({"w": np.zeros((5, 2), np.float32), "b": np.zeros(3, np.float32)}, "model.safetensors")
    done(*sign())
    return Office(tmp_path, Task.from_token(Path("task.jws").read_text().strip(), authority()))


def authority() -> bytes:
    return public_from_jwk(Path("authority/authority.pub").read_text().strip())


def sign(**changes: str) -> list[str]:
    """Arguments of `task sign`; `changes` replace files."""
    files = {
        "plan": "plan.toml",
        "model": "model.safetensors",
        "server": "server/credential.jws",
        "holder": "holder/credential.jws",
        "out": "task.jws",
    } | changes
    plan = files.pop("plan")
    return ["authority", "task", "sign", plan, *(word for name, file in files.items() for word in (f"--{name}", file))]


@pytest.mark.parametrize("role", ["client", "holder", "server"])
def test_everybody_is_enrolled_with_a_role(office: Office, role: str) -> None:
    identity = Identity.load(office.folder / role)
    claims = verify(identity.credential, Credential, authority())
    assert (claims.role, claims.exp - claims.iat) == (role, 2 * 86400)
    assert bool(claims.hpke) == (role == "holder")


def test_private_files_are_private(office: Office) -> None:
    for name in ("authority/authority.key", "holder/identity.key", "client/identity.key"):
        assert (office.folder / name).stat().st_mode & 0o777 == 0o600


def test_a_signed_task_is_the_plan_and_the_model(office: Office) -> None:
    config = office.task.config
    assert {spec.name: spec.shape for spec in config.model.tensors} == {"w": (5, 2), "b": (3,)}
    assert (config.name, config.rounds.min_clients, config.committee.threshold) == ("demo", 3, 1)
    assert [holder.name for holder in config.committee.holders] == ["holder-0"]
    assert config.encryption.scale == 2.0 ** int(np.log2(config.encryption.scale))
    said = done(*sign(out="again.jws"))
    assert "task 'demo', epoch 1, ckks/ckks-8192" in said
    assert "1 of 1 key holders open a sum once 1 voted for it" in said
    assert "(f = 0)" in said
    assert f"scale 2^+{int(np.log2(config.encryption.scale))}" in said


def test_keys_are_not_overwritten(office: Office) -> None:
    before = [(office.folder / name).read_bytes() for name in ("authority/authority.key", "holder/identity.key")]
    assert "not overwritten" in refuses("bad-key-file", "authority", "init")
    refuses("bad-key-file", "init", "--name", "other", "--data-dir", "holder")
    after = [(office.folder / name).read_bytes() for name in ("authority/authority.key", "holder/identity.key")]
    assert before == after


def test_a_passphrase_protects_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", PASSPHRASE)
    done("authority", "init")
    done("init", "--name", "holder-0", "--data-dir", "holder")
    enrolled(Path("holder"), "holder")
    assert json.loads(done("status", "--data-dir", "holder", "--format", "json")) == []
    for path in (Path("authority/authority.key"), Path("holder/identity.key")):
        assert not path.read_bytes().startswith(b"{")
        assert read_private(path, KeyRecord, PASSPHRASE).private
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", "wrong horse battery staple")
    assert "passphrase does not open" in refuses("bad-key-file", "status", "--data-dir", "holder")
    refuses("bad-key-file", "authority", "enroll", "holder/enroll-request.jws", "--role", "holder", "--out", "x")
    monkeypatch.delenv("HUSHSUM_PASSPHRASE")
    assert "was not given" in refuses("bad-key-file", "status", "--data-dir", "holder")
    assert not Path("x").exists()


def test_enrolments_that_are_refused(office: Office) -> None:
    refuses("wrong-role", "authority", "enroll", "client/enroll-request.jws", "--role", "holder", "--out", "x")
    refuses("bad-plan", "authority", "enroll", "missing.jws", "--role", "client", "--out", "x")
    Path("nonsense.jws").write_text("nonsense")
    refuses("malformed", "authority", "enroll", "nonsense.jws", "--role", "client", "--out", "x")
    Path("binary.jws").write_bytes(b"\xff\xfe\x00")
    refuses("bad-plan", "authority", "enroll", "binary.jws", "--role", "client", "--out", "x")
    elsewhere = ("--authority-dir", "nowhere")
    refuses(
        "bad-key-file", "authority", "enroll", "client/enroll-request.jws", "--role", "client", "--out", "x", *elsewhere
    )
    assert not Path("x").exists()


def test_a_place_that_cannot_be_written_is_one_line(office: Office) -> None:
    refuses(
        "bad-settings",
        "authority",
        "enroll",
        "client/enroll-request.jws",
        "--role",
        "client",
        "--out",
        "no/such/folder/x",
    )
    refuses("bad-settings", *sign(out="no/such/folder/task.jws"))


def test_a_signed_task_is_not_replaced_by_another(office: Office) -> None:
    """Parties may have joined it. The same one again is no mistake."""
    before = Path("task.jws").read_text()
    done(*sign())
    Path("other.toml").write_text(PLAN.replace('"demo"', '"other"'))
    assert "--force" in refuses("bad-settings", *sign(plan="other.toml"))
    assert Path("task.jws").read_text() == before
    done(*sign(plan="other.toml"), "--force")
    assert Path("task.jws").read_text() != before
    refuses("bad-plan", *sign(out="holder"))


def test_enrolling_says_whom(office: Office) -> None:
    asked = read_unverified(Path("client/enroll-request.jws").read_text().strip(), EnrollRequest)
    said = done("authority", "enroll", "client/enroll-request.jws", "--role", "client", "--out", "x")
    assert "'client'" in said
    assert fingerprint(asked.key) in said


@pytest.mark.parametrize("days", ["inf", "-inf", "nan", "-1", "0", "1e308", str(2**70)])
@pytest.mark.parametrize("words", [("enroll", "client/enroll-request.jws", "--role", "client"), ("revoke",)])
def test_a_time_that_no_credential_can_have(office: Office, words: tuple[str, ...], days: str) -> None:
    result = run("authority", *words, "--out", "x", "--days", days)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
    assert "--days" in result.stderr
    assert not Path("x").exists()


def test_a_name_that_nobody_could_enrol_is_refused_before_keys_are_made() -> None:
    refuses("bad-settings", "init", "--name", "...", "--data-dir", "holder")
    assert not Path("holder/identity.key").exists()


def test_tasks_that_are_not_signed(office: Office) -> None:
    Path("bad.toml").write_text("name = ")
    refuses("bad-plan", *sign(plan="bad.toml"))
    Path("binary.toml").write_bytes(b"\xff\xfe")
    refuses("bad-plan", *sign(plan="binary.toml"))
    Path("small.toml").write_text(PLAN.replace('scheme = "ckks"\n', ""))
    assert "`scheme` - at `$.encryption`" in refuses("bad-plan", *sign(plan="small.toml"))
    refuses("bad-plan", *sign(plan="missing.toml"))
    refuses("bad-plan", *sign(model="plan.toml"))
    refuses("bad-plan", *sign(model="missing.safetensors"))
    refuses("bad-plan", *sign(server="missing.jws"))
    refuses("wrong-role", *sign(server="client/credential.jws"))
    refuses("wrong-role", *sign(holder="server/credential.jws"))


def test_settings_that_are_refused(office: Office) -> None:
    refuses("bad-settings", "run", "--data-dir", "holder", "--min-clients-floor", "0")
    refuses("bad-settings", "run", "--data-dir", "holder", "--config", "missing.toml")


def test_a_refusal_keeps_its_brackets(office: Office) -> None:
    """What a peer or a path puts in square brackets is text: neither markup nor a reason to crash."""
    line = refuses("bad-plan", "authority", "enroll", "[/red][bold]x.jws", "--role", "client", "--out", "x")
    assert "[/red][bold]x.jws" in line


def test_run_without_a_task_says_what_to_do(office: Office) -> None:
    assert "he-holder join" in refuses("bad-plan", "run", "--data-dir", "holder")
    assert "he-holder join" in refuses("bad-plan", "run", "--data-dir", "holder", "--min-clients-floor", "3")


def test_nothing_joined_is_not_an_error(office: Office) -> None:
    assert json.loads(done("status", "--data-dir", "holder", "--format", "json")) == []
    assert "nothing yet" in done("ledger", "--data-dir", "holder")


@pytest.fixture
def joined(office: Office) -> Office:
    """As after `join`, without a server."""

    async def join() -> None:
        ledger = await Ledger.open(office.holder / "ledger.db")
        await ledger.join(office.task, "http://127.0.0.1:9", 1.0)
        await ledger.close()

    asyncio.run(join())
    return office


def test_status_shows_budgets(joined: Office) -> None:
    (row,) = json.loads(done("status", "--data-dir", "holder", "--format", "json"))
    assert row == {
        "task": "demo",
        "epoch": 1,
        "hash": joined.task.id,
        "state": "open",
        "server": "http://127.0.0.1:9",
        "keys": False,
        "committee": "1/1/1",
        "f": 0,
        "openings": 0,
        "votes": 0,
        "max_openings": 10,
        "model_version": 0,
        "epsilon": 0.0,
        "epsilon_budget": 100.0,
        "credential_until": valid_until(Path("holder/credential.jws").read_text().strip()),
    }
    text = done("status", "--data-dir", "holder")
    assert all(word in text for word in ("joined tasks", "demo", "max openings", "100.0"))


def test_the_ledger_is_shown_in_order(joined: Office) -> None:
    async def fill() -> bytes:
        from tests.support.openings import ask
        from tests.support.parties import World

        world = World()
        world.task = joined.task  # type: ignore[misc]
        ledger = await Ledger.open(joined.holder / "ledger.db")
        await ledger.refused(joined.task, 2, ProblemError(STALE_UPDATE, "too old [sic]"), 5.0, "a.b.c")
        request = ask(world, [world.update(name) for name in "abc"], now=3.0, opening=4, model_version=2)
        made = await ledger.decide(request, ())
        await ledger.close()
        return made.manifest_hash

    manifest = asyncio.run(fill())
    first, second = json.loads(done("ledger", "--data-dir", "holder", "--format", "json"))
    assert (first["task"], first["round"], first["decision"]) == ("demo", 1, "voted")
    assert (first["manifest"], first["detail"]) == (manifest.hex(), "opening 4: 3 updates on model 2, not settled")
    assert (second["round"], second["decision"]) == (2, "stale-update")
    text = done("ledger", "--data-dir", "holder")
    assert all(word in text for word in ("decisions", "voted", "stale-update", "opening 4", "3 updates"))
    (row,) = json.loads(done("status", "--data-dir", "holder", "--format", "json"))
    assert (row["openings"], row["votes"], row["model_version"]) == (4, 1, 2)
    assert 0 < row["epsilon"] < 100


@pytest.mark.usefixtures("_here")
def test_a_ledger_with_a_task_of_another_authority_is_refused_and_ends(joined: Office) -> None:
    """The database is closed on the way out: the process must not hang."""

    async def foreign() -> None:
        from tests.support.parties import World

        ledger = await Ledger.open(joined.holder / "ledger.db")
        await ledger.join(World().task, "http://127.0.0.1:9", 2.0)
        await ledger.close()

    asyncio.run(foreign())
    for command in ("status", "ledger", "run"):
        refuses("bad-signature", command, "--data-dir", "holder")
    program = subprocess.run(
        [*PROGRAM, "status", "--data-dir", "holder"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (program.returncode, program.stdout) == (2, "")
    assert "Traceback" not in program.stderr


PROGRAM = [sys.executable, "-c", "from he_holder.cli.main import app; app()"]


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(IMPORTABLE))


async def test_keygen_then_run_until_told_to_stop(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the ceremony of a committee of one, and `run` until a SIGTERM arrives."""
    async with FakeServer(office.task) as server:
        said = await asyncio.to_thread(done, "join", "demo", "--server", server.url, "--data-dir", "holder")
        assert "joined 'demo'" in said
        assert "promises hold while at most 0 of them collude with the server (f = 0)" in said
        assert "joint key " in said
        assert (office.holder / "epochs" / f"{office.task.id}-1.key").stat().st_mode & 0o777 == 0o600
        (row,) = json.loads(await asyncio.to_thread(done, "status", "--data-dir", "holder", "--format", "json"))
        assert row["keys"] is True

        from he_holder.cli import joined

        settings = Settings.load(data_dir=Path("holder"), poll_seconds=0.01)
        work = asyncio.create_task(joined.run(settings))
        await server.until(lambda: any(path.endswith("/openings") for _, path in server.seen))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(work, 5)


async def test_a_committee_of_one_is_not_joined_unless_its_holder_says_so(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUSHSUM_HOLDER_LEAST_F")
    async with FakeServer(office.task) as server:
        joining = ("join", "demo", "--server", server.url, "--data-dir", "holder")
        line = await asyncio.to_thread(refuses, "bad-committee", *joining)
        assert "expected f at least 1 (least_f), got 0" in line
        Path("keys.toml").write_text("least_f = 0\n")
        assert "joined" in await asyncio.to_thread(done, *joining, "--config", "keys.toml")


async def test_keygen_of_a_task_that_the_server_does_not_have(office: Office) -> None:
    async with FakeServer(office.task) as server:
        line = await asyncio.to_thread(
            refuses, "not-found", "join", "else", "--server", server.url, "--data-dir", "holder"
        )
        assert "'else'" in line


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_stops_cleanly(office: Office, number: signal.Signals) -> None:
    async with FakeServer(office.task) as server:
        ledger = await Ledger.open(office.holder / "ledger.db")
        await ledger.join(office.task, server.url, 1.0)
        await ledger.close()
        program = await asyncio.create_subprocess_exec(
            *PROGRAM, "run", "--data-dir", "holder", "--poll-seconds", "0.05",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            await server.until(lambda: any(path.endswith("/openings") for _, path in server.seen), within=30)
            program.send_signal(number)
            out, err = await asyncio.wait_for(program.communicate(), 10)
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
    assert program.returncode == 0, err
    assert b"Traceback" not in out + err
    assert b"stopped" in err


async def test_what_a_server_says_reaches_the_terminal_without_its_control_characters(office: Office) -> None:
    async def shout(_: web.Request) -> web.Response:
        return refusal(ProblemError(NOT_FOUND, "gone \x1b[2J\x1b]0;owned\x07\nrefused nothing"))

    async with FakeServer(office.task) as server:
        server.replaced["GET", "/v1/tasks"] = shout
        line = await asyncio.to_thread(
            refuses, "not-found", "join", "demo", "--server", server.url, "--data-dir", "holder"
        )
    assert r"gone \x1b[2J\x1b]0;owned\x07\nrefused nothing" in line


def renew(out: str = "holder/credential.jws") -> None:
    """The authority answers the request that `rotate` or `restore` has made."""
    done(
        "authority",
        "enroll",
        "holder/enroll-request.jws",
        "--role",
        "holder",
        "--renews",
        "holder/credential.jws",
        "--out",
        out,
    )


MODEL = ("--model", "model.safetensors")


def following(office: Office) -> Task:
    """The next epoch, after `rotate`."""
    renew()
    done("authority", "task", "next", "task.jws", *MODEL, "--holder", "holder/credential.jws", "--out", "next.jws")
    return Task.from_token(Path("next.jws").read_text().strip(), authority())


def keys() -> list[Path]:
    return sorted(Path("holder/hpke").iterdir())


async def test_rotate_next_epoch_keygen_destroy(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole turn of an epoch with `ckks`, whose committee makes a new joint key."""
    monkeypatch.setattr(RetryPolicy.__init__, "__defaults__", (0.05, 0.2, 1.0))  # for the server that is gone
    (old,) = keys()
    async with FakeServer(office.task) as server:
        await asyncio.to_thread(done, "join", "demo", "--server", server.url, "--data-dir", "holder")
    said = await asyncio.to_thread(done, "rotate", "--data-dir", "holder")
    assert all(word in said for word in ("--renews", "task next", "join", "destroy-epoch"))
    task = await asyncio.to_thread(following, office)
    assert (task.config.epoch, task.config.name) == (2, "demo")
    assert task.config.committee.holders[0].hpke != office.task.config.committee.holders[0].hpke
    async with FakeServer(task) as server:
        await asyncio.to_thread(done, "join", "demo", "--server", server.url, "--data-dir", "holder")
    assert "epoch 1" in await asyncio.to_thread(
        refuses, "not-found", "destroy-epoch", "demo", "--data-dir", "holder", "--yes"
    )  # which of the two?
    destroying = ("destroy-epoch", office.task.id, "--data-dir", "holder", "--yes", "--format", "json")
    await asyncio.to_thread(refuses, "unreachable", *destroying)
    assert old.exists()
    gone = json.loads(await asyncio.to_thread(done, *destroying, "--force"))
    assert {Path(row["file"]) for row in gone} == {
        old,
        Path(f"holder/epochs/{office.task.id}-1.key"),
        Path(f"holder/epochs/{office.task.id}-1.draws"),
    }
    assert not any(Path(row["file"]).exists() for row in gone)
    rows = json.loads(await asyncio.to_thread(done, "status", "--data-dir", "holder", "--format", "json"))
    assert [(row["epoch"], row["state"], row["keys"]) for row in rows] == [(1, "destroyed", False), (2, "open", True)]
    async with FakeServer(office.task) as server:
        await asyncio.to_thread(
            refuses, "epoch-destroyed", "join", office.task.id, "--server", server.url, "--data-dir", "holder"
        )
        await asyncio.to_thread(refuses, "old-epoch", "join", "demo", "--server", server.url, "--data-dir", "holder")


def test_an_epoch_is_destroyed_only_when_somebody_says_yes(joined: Office) -> None:
    destroying = ["destroy-epoch", "demo", "--data-dir", "holder", "--force"]
    for answer in ("n\n", ""):
        result = CliRunner().invoke(app, destroying, input=answer)
        assert result.exit_code == 1
        assert str(keys()[0]) in result.stderr
        assert "not over: 10 of its 10 openings are left" in result.stderr
    assert len(keys()) == 1
    assert CliRunner().invoke(app, destroying, input="y\n").exit_code == 0
    assert keys() == []
    assert "he-holder join" in run("run", "--data-dir", "holder").stderr
    refuses("not-found", "destroy-epoch", "other", "--data-dir", "holder")


def test_a_holder_leaves_a_task_and_keeps_its_keys(joined: Office) -> None:
    before = keys()
    assert done("leave", "demo", "--data-dir", "holder").strip() == "left demo, epoch 1"
    assert keys() == before
    assert "he-holder join" in run("run", "--data-dir", "holder").stderr  # there is nothing left to serve
    for nothing in ("other", ""):
        refuses("not-found", "leave", nothing, "--data-dir", "holder")


def test_no_name_is_no_task(joined: Office) -> None:
    refuses("not-found", "leave", "", "--data-dir", "holder")
    refuses("not-found", "destroy-epoch", "", "--data-dir", "holder", "--force", "--yes")


def test_status_shows_the_hash_that_the_other_commands_take(joined: Office) -> None:
    (row,) = json.loads(done("status", "--data-dir", "holder", "--format", "json"))
    assert row["hash"] == joined.task.id
    assert done("leave", row["hash"][:12], "--data-dir", "holder").strip() == "left demo, epoch 1"


def test_a_key_that_stays_is_named(joined: Office) -> None:
    """A second task under the same HPKE key keeps the first one's ciphertexts within reach."""
    Path("second.toml").write_text(PLAN.replace('"demo"', '"second"'))
    done(*sign(plan="second.toml", out="second.jws"))

    async def join() -> None:
        ledger = await Ledger.open(joined.holder / "ledger.db")
        await ledger.join(Task.from_token(Path("second.jws").read_text().strip(), authority()), "http://x", 1.0)
        await ledger.close()

    asyncio.run(join())
    for name, stays in (("demo", True), ("second", False)):
        result = run("destroy-epoch", name, "--data-dir", "holder", "--force", "--yes")
        assert result.exit_code == 0
        assert ("HPKE key stays" in result.stderr) is stays
        assert bool(keys()) is stays


def test_run_finishes_a_destruction_that_was_cut_short(joined: Office) -> None:
    async def mark() -> None:
        ledger = await Ledger.open(joined.holder / "ledger.db")
        await ledger.destroy(joined.task, 2.0)
        await ledger.close()

    asyncio.run(mark())
    assert len(keys()) == 1
    assert "demo, epoch 1: destroyed, not served" in run("run", "--data-dir", "holder").stderr
    assert keys() == []


def test_a_table_shows_control_characters_and_does_not_obey_them(capsys: pytest.CaptureFixture[str]) -> None:
    console.show([{"detail": "gone \x1b[2J"}], "text", "title")
    assert r"gone \x1b[2J" in capsys.readouterr().out


def test_the_next_epoch_needs_new_keys_of_the_same_parties(office: Office) -> None:
    reuse = ("authority", "task", "next", "task.jws", *MODEL, "--holder", "holder/credential.jws", "--out", "next.jws")
    assert "he-holder rotate" in refuses("bad-committee", *reuse)
    refuses(
        "wrong-role",
        "authority",
        "task",
        "next",
        "task.jws",
        *MODEL,
        "--holder",
        "client/credential.jws",
        "--out",
        "next.jws",
    )
    asked = ("authority", "enroll", "holder/enroll-request.jws", "--role", "holder", "--out", "x", "--renews")
    refuses("not-addressed", *asked, "client/credential.jws")
    refuses("bad-plan", *asked, "missing.jws")
    assert not Path("x").exists()
    assert not Path("next.jws").exists()


def test_backup_and_restore(joined: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses("bad-key-file", "backup", "holder.backup", "--data-dir", "holder")
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", PASSPHRASE)
    assert "goes on as before" in done("backup", "holder.backup", "--data-dir", "holder")
    said = done("restore", "holder.backup", "again")
    assert "Never start the old holder again" in said
    (row,) = json.loads(done("status", "--data-dir", "again", "--format", "json"))
    assert (row["task"], row["state"]) == ("demo", "closed")
    result = run("run", "--data-dir", "again")
    assert result.exit_code == 2
    assert "demo, epoch 1: closed, not served" in result.stderr
    assert "[bad-plan]" in result.stderr
    refuses("bad-key-file", "restore", "holder.backup", "again")
