"""What a client checks before it encrypts under a committee's joint key, with the real TenSEAL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import tenseal
from msgspec.structs import replace

from he_client.schemes import ckks
from he_client.schemes.ckks import CkksEncryptor, check_confirmations, check_tenseal, joint_context, load_context
from he_protocol.arithmetic import residues
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Confirmation
from he_protocol.problems import (
    BAD_SIGNATURE,
    CEREMONY_CONFLICT,
    DIGEST_MISMATCH,
    KEYS_NOT_READY,
    MALFORMED,
    PRIVATE_CONTEXT,
    RESIDUE_RANGE,
    TENSEAL_VERSION,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_TASK,
    ProblemType,
)
from he_protocol.schemes.ckks import Ckks
from he_testing.problems import expect_problem
from tests.support.parties import World


def scheme_of(world: World) -> Ckks:
    scheme = world.task.scheme
    assert isinstance(scheme, Ckks)
    return scheme


def confirmations(world: World) -> dict[str, Confirmation]:
    digest = hashlib.sha256(world.dealt[1]).digest()
    return {holder.name: Confirmation(world.task.hash, 1, holder.name, bytes(32), digest) for holder in world.committee}


def signed(world: World, said: dict[str, Confirmation]) -> dict[str, str]:
    keys = {holder.name: holder.key for holder in world.committee}
    return {name: keys[name].sign(message) for name, message in said.items()}


def test_the_pinned_tenseal_is_the_installed_one(world: World) -> None:
    profile = scheme_of(world).profile
    check_tenseal(profile)
    assert profile.tenseal == tenseal.__version__


@pytest.mark.parametrize("version", ["0.3.15", "0.3.19", ""])
def test_another_tenseal_is_refused(world: World, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(tenseal, "__version__", version)
    with expect_problem(TENSEAL_VERSION, "expected 0.3.18"):
        check_tenseal(scheme_of(world).profile)


def test_a_key_that_every_holder_confirmed_is_taken(world: World) -> None:
    assert (
        check_confirmations(world.task, signed(world, confirmations(world))) == hashlib.sha256(world.dealt[1]).digest()
    )


@pytest.mark.parametrize("holder", [0, 1, 2])
def test_a_single_missing_holder_is_enough_to_refuse(world: World, holder: int) -> None:
    tokens = signed(world, confirmations(world))
    del tokens[f"holder-{holder}"]
    with expect_problem(KEYS_NOT_READY, f"holder-{holder}"):
        check_confirmations(world.task, tokens)


@pytest.mark.parametrize("holder", [0, 2])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task_hash": bytes(32)}, WRONG_TASK),
        ({"epoch": 2}, WRONG_EPOCH),
        ({"key": bytes(32)}, CEREMONY_CONFLICT),
        ({"transcript": bytes([1] * 32)}, CEREMONY_CONFLICT),
    ],
    ids=["task", "epoch", "key", "transcript"],
)
def test_one_holder_that_confirms_something_else_is_refused(
    world: World, holder: int, changes: dict[str, object], problem: ProblemType
) -> None:
    said = confirmations(world)
    said[f"holder-{holder}"] = replace(said[f"holder-{holder}"], **changes)
    with expect_problem(problem):
        check_confirmations(world.task, signed(world, said))


@pytest.mark.parametrize("holder", [0, 2])
def test_a_confirmation_under_another_key_is_refused(world: World, holder: int) -> None:
    said = confirmations(world)
    tokens = signed(world, said) | {f"holder-{holder}": SigningKey.generate().sign(said[f"holder-{holder}"])}
    with expect_problem(BAD_SIGNATURE):
        check_confirmations(world.task, tokens)


def test_one_holder_cannot_confirm_for_another(world: World) -> None:
    tokens = signed(world, confirmations(world))
    with expect_problem(BAD_SIGNATURE):
        check_confirmations(world.task, tokens | {"holder-1": tokens["holder-0"]})


@pytest.mark.parametrize("at", [0, -1])
def test_a_tampered_key_is_refused(world: World, at: int) -> None:
    key = bytearray(world.dealt[1])
    key[at] ^= 1
    digest = hashlib.sha256(world.dealt[1]).digest()
    with expect_problem(DIGEST_MISMATCH):
        joint_context(world.task, scheme_of(world), digest, bytes(key))


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda key: key[:-1], WRONG_SIZE), (lambda key: b"\xff" * len(key), RESIDUE_RANGE)],
    ids=["short", "residues too large"],
)
def test_confirmed_nonsense_is_refused_too(
    world: World, change: Callable[[bytes], bytes], problem: ProblemType
) -> None:
    key = change(world.dealt[1])
    with expect_problem(problem):
        joint_context(world.task, scheme_of(world), hashlib.sha256(key).digest(), key)


def test_the_joint_context_holds_no_secret(world: World) -> None:
    key = world.dealt[1]
    context = load_context(joint_context(world.task, scheme_of(world), hashlib.sha256(key).digest(), key))
    assert not context.has_secret_key()
    assert context.has_public_key()


def private_context() -> tenseal.Context:
    return tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[50, 50, 50])


def test_a_private_context_is_refused() -> None:
    context = private_context()
    with expect_problem(PRIVATE_CONTEXT):
        load_context(context.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False))
    public = context.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    assert not load_context(public).has_secret_key()


def test_what_tenseal_itself_finds_is_refused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checks that do not know of each other: our parser's, and TenSEAL's own answer."""
    context = private_context()
    data = context.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    monkeypatch.setattr(ckks.seal_codec, "refuse_private", lambda _: None)  # type: ignore[attr-defined]
    with expect_problem(PRIVATE_CONTEXT, "TenSEAL found"):
        load_context(data)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7f", b"\x0b"])
def test_what_is_no_context_is_malformed(data: bytes) -> None:
    with expect_problem(MALFORMED):
        load_context(data)


async def test_a_dead_worker_process_does_not_end_sealing_for_good(world: World, tmp_path: Path) -> None:
    key, scheme = world.dealt[1], scheme_of(world)
    path = tmp_path / "context"
    sealer = CkksEncryptor(scheme.profile, path, world.task.length)
    numbers = np.arange(world.task.length, dtype=np.int64)
    written: dict[str, bytes] = {}

    def sink(name: str, data: bytes | memoryview) -> None:
        written[name] = bytes(data)

    with pytest.raises(BrokenProcessPool):
        await _in_pool(_die)
    path.write_bytes(joint_context(world.task, scheme, hashlib.sha256(key).digest(), key))
    with pytest.raises(BrokenProcessPool):
        await sealer.encrypt(bytes(16), lambda start, stop: numbers[start:stop], sink)
    await sealer.encrypt(bytes(16), lambda start, stop: numbers[start:stop], sink)
    layout = residues.ResidueLayout(1, scheme.profile.data_moduli, scheme.profile.degree, scheme.profile.bits)
    assert {name: len(data) for name, data in written.items()} == {"c0": layout.size, "c1": layout.size}


async def _in_pool(function: Callable[[], None]) -> None:
    import asyncio

    await asyncio.get_running_loop().run_in_executor(ckks._pool(), function)


def _die() -> None:
    import os

    os._exit(1)


async def test_a_private_context_in_the_cache_stops_sealing(world: World, tmp_path: Path) -> None:
    """The refusal comes back from the worker process as it is."""
    path = tmp_path / "context"
    path.write_bytes(private_context().serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False))
    sealer = CkksEncryptor(scheme_of(world).profile, path, world.task.length)
    with pytest.raises(ProblemError) as caught:
        await sealer.encrypt(bytes(16), lambda start, stop: np.zeros(stop - start, dtype=np.int64), lambda *_: None)
    assert caught.value.problem == PRIVATE_CONTEXT
