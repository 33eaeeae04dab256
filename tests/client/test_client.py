"""`HushSumClient`: models, rounds, and the privacy that they cost."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from msgspec.structs import replace
from safetensors.numpy import save

from he_client import HushSumClient, Submission, SyncClient
from he_party.keyfile import KeyRecord, read_private
from he_protocol import documents, headers
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import PublishedModel, Vote
from he_protocol.privacy.plan import epsilon
from he_protocol.problems import (
    BAD_PLAN,
    BAD_SIGNATURE,
    BAD_TENSORS,
    COMBINE_REFUSED,
    DIGEST_MISMATCH,
    MALFORMED,
    TOO_FEW_CLIENTS,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
    WRONG_STATE,
    WRONG_TASK,
    ProblemType,
)
from he_testing.problems import expect_problem
from tests.support.parties import World
from tests.support.proxy import Proxy
from tests.support.service import MODEL, TASK, Service

UPDATE = {"w": np.full((2, 3), 0.5, dtype=np.float32), "b": np.full(2, -0.5, dtype=np.float32)}


async def submit(client: HushSumClient, service: Service, base_version: int = 0) -> Submission:
    return await client.submit(service.task, UPDATE, base_version=base_version)


async def publish(service: Service) -> int:
    """One round of two clients; the version that came of it."""
    async with service.committee(), service.client(2) as two, service.client(3) as three:
        sent = await submit(two, service)
        await submit(three, service)
        return await two.wait(service.task, sent)


def server_key(service: Service) -> SigningKey:
    return read_private(service.root / "server" / "server.key", KeyRecord).signing


def model_answer(service: Service, body: bytes, key: SigningKey | None = None, **signed: Any) -> web.Response:
    """As the server gives it; `signed` changes what it has signed."""
    said = PublishedModel(service.task.hash, 3, hashlib.sha256(body).digest())
    token = (key or server_key(service)).sign(replace(said, **signed))
    return web.Response(body=body, headers={headers.MODEL: token})


async def test_the_task_is_found_by_name_and_by_hash(service: Service) -> None:
    async with service.client(1) as client:
        assert (await client.task(TASK)).hash == service.task.hash
        assert (await client.task(service.task.id)).hash == service.task.hash


async def test_the_model_is_pulled_and_not_pulled_again(service: Service, proxy: Proxy) -> None:
    async with service.client(1, proxy.url) as client:
        first = await client.pull_model(service.task)
        second = await client.pull_model(service.task)
    async with service.client(1, proxy.url) as restarted:
        third = await restarted.pull_model(service.task)
    for model in (first, second, third):
        assert model.version == 0
        assert all(np.array_equal(model.tensors[name], value) for name, value in MODEL.items())
    asked = [seen.headers.get("If-None-Match") for seen in proxy.seen]
    tag = '"' + hashlib.sha256((service.root / "initial.safetensors").read_bytes()).hexdigest() + '"'
    assert asked == [None, tag, tag]


async def test_a_new_model_replaces_the_kept_one(service: Service) -> None:
    async with service.client(1) as client:
        before = await client.pull_model(service.task)
        assert await publish(service) == 1
        after = await client.pull_model(service.task)
        again = await client.pull_model(service.task)
    assert (before.version, after.version, again.version) == (0, 1, 1)
    assert not np.array_equal(before.tensors["b"], after.tensors["b"])
    assert np.array_equal(after.tensors["b"], again.tensors["b"])


async def test_a_kept_model_that_was_damaged_is_pulled_again(service: Service) -> None:
    async with service.client(1) as client:
        await client.pull_model(service.task)
        (kept,) = (service.folder(1) / "state").glob("*.safetensors")
        kept.write_bytes(kept.read_bytes()[:-1])
        model = await client.pull_model(service.task)
    assert np.array_equal(model.tensors["w"], MODEL["w"])


async def test_a_model_that_is_not_what_was_signed_is_refused_and_not_kept(service: Service, proxy: Proxy) -> None:
    proxy.faults["GET"] = [lambda body: body[:-1] + bytes([body[-1] ^ 1])]
    async with service.client(1, proxy.url) as client:
        with expect_problem(DIGEST_MISMATCH):
            await client.pull_model(service.task)
        assert (await client.pull_model(service.task)).version == 0
    assert "If-None-Match" not in proxy.seen[1].headers


OTHER = {"w": MODEL["w"]}
SAVED = save(dict(MODEL))


def vote(service: Service) -> str:
    """Signed by the server, with a digest in it, and something else."""
    return server_key(service).sign(Vote(service.task.hash, 1, 3, hashlib.sha256(SAVED).digest(), "holder-1"))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda service: model_answer(service, save(OTHER)), BAD_TENSORS),
        (lambda service: model_answer(service, b"not safetensors"), UNEXPECTED_ANSWER),
        (lambda service: web.Response(body=SAVED), UNEXPECTED_ANSWER),
        (lambda service: web.Response(body=SAVED, headers={headers.MODEL: "3"}), MALFORMED),
        (lambda service: web.Response(body=SAVED, headers={headers.MODEL: vote(service)}), BAD_SIGNATURE),
        (lambda service: model_answer(service, SAVED, SigningKey.generate()), BAD_SIGNATURE),
        (lambda service: model_answer(service, SAVED, task_hash=bytes(32)), WRONG_TASK),
        (lambda service: model_answer(service, SAVED, sha256=bytes(32)), DIGEST_MISMATCH),
        (lambda service: model_answer(service, save(OTHER), version=0), DIGEST_MISMATCH),
    ],
    ids=["other tensors", "no tensors", "nothing signed", "no token", "another kind of message", "another signer",
         "another task", "other bytes", "another initial model"],
)  # fmt: skip
async def test_a_model_outside_the_protocol_is_a_refusal(
    service: Service, answer: Callable[[Service], web.Response], problem: ProblemType
) -> None:
    async with Proxy(service.url, {"GET": [answer(service)]}) as proxy, service.client(1, proxy.url) as client:
        with expect_problem(problem):
            await client.pull_model(service.task)
        assert (await client.pull_model(service.task)).version == 0


@pytest.mark.parametrize(
    "tag", ["", 'W/"{}"', '"{}-gzip"', '"x"'], ids=["dropped", "weakened", "lengthened", "another"]
)
async def test_what_a_proxy_does_to_etags_is_of_no_account(service: Service, proxy: Proxy, tag: str) -> None:
    """The answer's is not looked at, and the question's is understood as long as the digest stands in it."""
    sha256 = hashlib.sha256((service.root / "initial.safetensors").read_bytes()).hexdigest()
    proxy.tags = {"ETag": tag.format(sha256), "If-None-Match": tag.format(sha256)}
    async with service.client(1, proxy.url) as client:
        models = [await client.pull_model(service.task) for _ in range(2)]
    assert [model.version for model in models] == [0, 0]
    assert np.array_equal(models[1].tensors["w"], MODEL["w"])
    assert proxy.answered == [200, 304 if sha256 in tag.format(sha256) else 200]


async def test_an_old_word_for_a_model_is_not_for_the_kept_one(service: Service, proxy: Proxy) -> None:
    """Who answers "not changed" with what the server signed of another version changes nothing here."""
    async with service.client(1, proxy.url) as client:
        await client.pull_model(service.task)
        other = model_answer(service, save(OTHER))
        proxy.faults["GET"] = [web.Response(status=304, headers=other.headers)]
        with expect_problem(DIGEST_MISMATCH):
            await client.pull_model(service.task)
        assert (await client.pull_model(service.task)).version == 0


async def test_a_submission_is_encoded_encrypted_counted_and_published(service: Service) -> None:
    """Two clients send the same; the model moves by their mean, up to the noise of the plan."""
    task = service.task
    async with service.committee(), service.client(1) as one, service.client(2) as two:
        sent, other = await asyncio.gather(submit(one, service), submit(two, service))
        assert await one.wait(task, sent) == await two.wait(task, other) == 1
        total = await one.opened_sum(task, sent.round)
        model = await one.pull_model(task)
        status = await one.round(task, sent.round)
    assert sent.task_id == task.id
    assert sent.bytes > sum(part.size for part in task.body)
    assert set(sent.seconds) == {"encrypt", "upload"}
    assert (status.state, status.updates, status.version) == ("published", 2, 1)
    expected = 2 * 1024 * np.array([0.5] * 6 + [-0.5] * 2)
    assert np.abs(total - expected).max() < 8 * task.noise_std * np.sqrt(2)
    moved = np.concatenate([(model.tensors[name] - MODEL[name]).reshape(-1) for name in ("w", "b")])
    most = task.config.aggregation.value_range  # the noise of few clients is wide: what is published is clipped
    np.testing.assert_allclose(moved, np.clip(total / 2 / 1024, -most, most), rtol=1e-5, atol=1e-6)


async def test_two_submissions_of_one_update_share_no_bytes(service: Service) -> None:
    """Fresh noise and fresh encryption each time."""
    async with service.client(1) as client:
        zeros = np.zeros(service.task.length, dtype=np.int64)
        sealed = [
            await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0) for _ in range(2)
        ]
    one, other = ([path.read_bytes() for path in item.sections] for item in sealed)
    for a, b in zip(one, other, strict=True):
        assert len(a) == len(b)
        same = np.count_nonzero(np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8))
        assert same < max(16, len(a) / 50)  # chance gives 1 in 256


async def test_tensors_of_another_model_are_refused_before_anything_is_sealed(service: Service) -> None:
    async with service.client(1) as client:
        with expect_problem(BAD_TENSORS):
            await client.submit(service.task, OTHER, base_version=0)
        with expect_problem(BAD_PLAN):
            await client.submit(service.task, UPDATE, base_version=0, examples=3)
    assert not (service.folder(1) / "state" / "updates").exists()


async def test_wait_tells_that_too_few_clients_came(service: Service) -> None:
    async with service.client(1) as client:
        sent = await submit(client, service)
        service.clock.ahead = 61
        with expect_problem(TOO_FEW_CLIENTS, f"round {sent.round}"):
            await client.wait(service.task, sent)
        assert (await client.round(service.task, sent.round)).state == "failed"
        with expect_problem(WRONG_STATE):
            await client.opened_sum(service.task, sent.round)


async def test_a_round_waits_for_its_key_holders_as_long_as_it_takes(service: Service) -> None:
    async with service.client(1) as one, service.client(2) as two:
        sent = await submit(one, service)
        await submit(two, service)
        async with asyncio.timeout(20):
            while not (await one.round(service.task, sent.round)).opening:
                await asyncio.sleep(0.01)
        service.clock.ahead = 10 * service.task.config.rounds.opening_seconds
        with expect_problem(UNREACHABLE, "still closed"):
            await one.wait(service.task, sent, within=0.2)
        assert [status.said for status in (await one.round(service.task, sent.round)).committee] == [""] * 4
        async with service.committee():
            assert await one.wait(service.task, sent) == 1


async def test_wait_tells_that_the_updates_bucket_was_dropped_from_a_published_round(service: Service) -> None:
    failure = documents.Failure(COMBINE_REFUSED.urn, "the opened key is out of range")
    status = msgspec.json.encode(documents.UpdateStatus("00" * 16, 7, "published", 3, failure))
    sent = Submission(service.task.id, "00" * 16, 7, 1, {})
    async with (
        Proxy(service.url, {"GET": [web.Response(body=status)]}) as proxy,
        service.client(1, proxy.url) as client,
    ):
        with expect_problem(COMBINE_REFUSED, "round 7: the opened key is out of range"):
            await client.wait(service.task, sent)


async def test_wait_gives_up_when_asked_to(service: Service) -> None:
    async with service.client(1) as client:
        sent = await submit(client, service)
        with expect_problem(UNREACHABLE, f"round {sent.round} is still open after 0.1 s"):
            await client.wait(service.task, sent, within=0.1)


async def test_wait_goes_on_through_a_restart_of_the_server(service: Service, proxy: Proxy) -> None:
    async with service.committee(), service.client(1, proxy.url) as one, service.client(2) as two:
        sent = await submit(one, service)
        waiting = asyncio.create_task(one.wait(service.task, sent))
        proxy.faults["GET"] = ["lost", web.Response(status=503), "dropped"]
        await submit(two, service)
        assert await waiting == 1
    assert proxy.faults["GET"] == []


async def test_privacy_is_counted_by_acknowledgement(service: Service) -> None:
    task, plan = service.task, service.task.config.privacy
    async with service.client(1) as client:
        assert client.privacy_planned(task) == epsilon(plan, task.config.rounds.max_openings) > 0
        assert client.privacy_spent(task) == 0
        sent = await submit(client, service)
        assert client.privacy_spent(task) == epsilon(plan, 1) > 0
        service.clock.ahead = 61
        with expect_problem(TOO_FEW_CLIENTS):
            await client.wait(task, sent)
        assert (await submit(client, service)).round == sent.round + 1
        spent = epsilon(plan, 2)
        assert client.privacy_spent(task) == spent > epsilon(plan, 1)
    async with service.client(1) as restarted:
        assert restarted.privacy_spent(task) == spent
    async with service.client(2) as other:
        assert other.privacy_spent(task) == 0


async def test_the_synchronous_client_does_the_same(service: Service) -> None:
    def work() -> tuple[Submission, int, float, float]:
        state = service.folder(1) / "state"
        with SyncClient(service.url, service.identity(1), state_dir=state) as client:
            task = client.task(TASK)
            model = client.pull_model(task)
            assert client.resume(task) == []
            sent = client.submit(task, UPDATE, base_version=model.version)
            version = client.wait(task, sent, within=30)
            return sent, version, client.privacy_spent(task), client.privacy_planned(task)

    async with service.committee(), service.client(2) as other:
        await submit(other, service)
        sent, version, spent, planned = await asyncio.to_thread(work)
    assert (sent.round, version) == (1, 1)
    assert 0 < spent < planned


async def test_the_synchronous_client_works_inside_a_loop(service: Service) -> None:
    """As in a notebook: the call comes from the thread in which a loop runs."""

    def cell() -> int:
        async def inside() -> int:
            with SyncClient(service.url, service.identity(1), state_dir=service.folder(1) / "state") as client:
                return client.submit(client.task(TASK), UPDATE, base_version=0).round

        return asyncio.run(inside())

    assert await asyncio.to_thread(cell) == 1


def test_the_synchronous_client_says_how_it_is_used(world: World, tmp_path: Path) -> None:
    client = SyncClient("http://127.0.0.1:1", world.client("c"), state_dir=tmp_path)
    with pytest.raises(RuntimeError, match="context manager"):
        client.task("x")


_FORK = """
import asyncio, os, sys
from pathlib import Path
import numpy as np
from he_client import HushSumClient, Identity, SyncClient

url, folder = sys.argv[1], Path(sys.argv[2])
update = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}

def forked(again):
    child = os.fork()
    if not child:
        try:
            again()
        except Exception as refusal:
            os._exit(7 if "already-in-round" in str(refusal) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
FORKED = {
    "sync": _FORK
    + """
with SyncClient(url, Identity.load(folder), state_dir=folder / "state") as client:
    task = client.task("client-test")
    client.submit(task, update, base_version=0)
    code = forked(lambda: client.submit(task, update, base_version=0))
    assert client.pull_model(task).version == 0
sys.exit(code)
""",
    "async": _FORK
    + """
client = HushSumClient(url, Identity.load(folder), state_dir=folder / "state")

async def submit():
    async with client:
        await client.submit(await client.task("client-test"), update, base_version=0)

asyncio.run(submit())
sys.exit(forked(lambda: asyncio.run(submit())))
""",
}


@pytest.mark.parametrize("program_text", FORKED.values(), ids=list(FORKED))
async def test_a_client_works_after_a_fork(service: Service, program_text: str) -> None:
    """Threads and connections stay with the parent; the child had to encrypt and to ask the server to get so far."""
    if service.task.config.encryption.scheme == "ckks":
        pytest.skip("TenSEAL's own threads do not follow into a fork")
    folder = str(service.folder(1))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program_text, service.url, folder, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(program.communicate(), 60)
    except TimeoutError:
        program.kill()
        raise
    assert program.returncode == 7, said.decode()


async def test_a_submission_says_what_the_limits_took_of_the_update(service: Service) -> None:
    async with service.client(1) as client:
        update = {"w": np.full((2, 3), 5.0), "b": np.zeros(2)}
        sent = await client.submit(service.task, update, base_version=0)
        assert sent.limited is not None
        assert (sent.limited.norm, sent.limited.clipped_norm) == (pytest.approx(150**0.5), pytest.approx(2.0))
        assert sent.saturated == 0.0  # clipped before it is cut
    async with service.client(2) as client:
        zeros = np.zeros(service.task.length, dtype=np.int64)
        sealed = await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
        assert (await client.upload(service.task, sealed)).saturated is None
