"""HPKE keys where they come in: keys that can be sealed to, that the holder has, and that no other holder has."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from he_authority import enrollment
from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config, next_epoch
from he_holder.hpke_key import HpkeKey
from he_holder.keyring import new_holder, rotate
from he_holder.schemes import make_share_maker
from he_protocol import envelope
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.envelope import (
    MLKEM_PUBLIC_BYTES,
    check_distinct,
    check_key,
    check_possession,
    possession_message,
    share_a_half,
)
from he_protocol.identity.jws import CURVE_PRIME, SigningKey, verify
from he_protocol.messages import Credential, EnrollRequest
from he_protocol.problems import BAD_COMMITTEE, BAD_SIGNATURE, MALFORMED, ProblemType
from he_testing.parties import Authority, enroll_request
from he_testing.plans import changed, tables
from he_testing.problems import expect_problem
from tests.support.openings import send_kahe
from tests.support.parties import NOW, PLAN, World, zeros_digest

KEY, OTHER = HpkeKey.generate(), HpkeKey.generate()
MLKEM, X25519 = KEY.public[:MLKEM_PUBLIC_BYTES], KEY.public[MLKEM_PUBLIC_BYTES:]
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
LOW = [0, 1, CURVE_PRIME - 1, ORDER_8, 39382357235489614581723060781553021112529911719440698176882885853963445705823]


def little(u: int) -> bytes:
    return u.to_bytes(32, "little")


def coefficient(index: int, value: int) -> bytes:
    """The ML-KEM half with one coefficient changed."""
    data = bytearray(MLKEM)
    at = index // 2 * 3
    low, middle, high = data[at : at + 3]
    if index % 2 == 0:
        low, middle = value & 255, middle & 0xF0 | value >> 8
    else:
        middle, high = middle & 0x0F | (value & 15) << 4, value >> 4
    data[at : at + 3] = bytes([low, middle, high])
    return bytes(data)


BAD = {
    **{f"X25519_{u:x}"[:20]: MLKEM + little(u) for u in LOW},
    "X25519_second_spelling": MLKEM + little(9 + CURVE_PRIME),
    "X25519_p": MLKEM + little(CURVE_PRIME),
    "X25519_top_bit": MLKEM + little(int.from_bytes(X25519, "little") | 1 << 255),
    "ML-KEM_ff": b"\xff" * MLKEM_PUBLIC_BYTES + X25519,
    "ML-KEM_first_is_q": coefficient(0, 3329) + X25519,
    "ML-KEM_last_is_q": coefficient(767, 3329) + X25519,
    "short": KEY.public[:-1],
    "long": KEY.public + b"\0",
    "nothing": b"",
}


def test_keys_that_are_made_pass() -> None:
    for index in (0, 1, 766, 767):
        check_key(coefficient(index, 3328) + X25519)
    check_distinct([KEY.public, OTHER.public])
    check_possession(KEY.prove(b"m"), KEY.public, b"m")


@pytest.mark.parametrize("public", BAD.values(), ids=BAD.keys())
def test_a_key_that_nobody_can_seal_to_is_refused(public: bytes) -> None:
    with expect_problem(MALFORMED):
        check_key(public)
    with expect_problem(MALFORMED):
        envelope.seal(b"seed", public, b"info")
    if public:
        signer = SigningKey.generate()
        request = signer.sign(EnrollRequest("holder-0", "holder", signer.public, int(NOW), public, bytes(64)))
        with expect_problem(MALFORMED):
            issue_credential(Authority().key, request, "holder", now=NOW, days=1)


@pytest.mark.parametrize("public", [key for key in BAD.values() if len(key) == len(KEY.public)])
def test_one_unusable_key_would_stop_every_client_for_the_epoch(public: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, the authority signs a task whose clients cannot seal; or, for a second spelling, seal to nobody."""
    world = World(plan={"scheme": "kahe", "profile": "kahe-14", "scale": 16.0})
    config = world.task.config
    first, *others = config.committee.holders
    broken = changed(config, holders=(replace(first, hpke=public), *others))
    with expect_problem(MALFORMED):
        broken.check()
    with monkeypatch.context() as off:
        off.setattr(envelope, "check_key", lambda public: None)
        broken.check()


def committee(world: World, keys: list[bytes]) -> list[str]:
    """Credentials of an authority that did not look."""
    parties = (world.authority.party(f"holder-{i}", "holder") for i in range(len(keys)))
    signer = world.authority.key
    return [
        signer.sign(replace(verify(party.credential, Credential, signer.public), hpke=key))
        for party, key in zip(parties, keys, strict=True)
    ]


@pytest.mark.parametrize(
    "third",
    [
        lambda keys: keys[0],
        lambda keys: keys[0][:MLKEM_PUBLIC_BYTES] + keys[2][MLKEM_PUBLIC_BYTES:],
        lambda keys: keys[2][:MLKEM_PUBLIC_BYTES] + keys[0][MLKEM_PUBLIC_BYTES:],
    ],
    ids=["whole", "ML-KEM_half", "X25519_half"],
)
def test_two_holders_with_one_key_are_one_holder(third, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    world = World(plan={"scheme": "kahe", "profile": "kahe-14", "scale": 16.0}, tensors=(TensorSpec("w", (70,)),))
    keys = [key.public for key in world.hpke]
    credentials = committee(world, [keys[0], keys[1], third(keys)])
    plan, model = tables(PLAN | world.plan | {"agreement": 3}), ModelSpec(world.tensors, zeros_digest(world.tensors))
    asked = (plan, model, world.server.credential, credentials, world.authority.key.public)
    with expect_problem(BAD_COMMITTEE):
        build_config(*asked)
    with monkeypatch.context() as off:
        off.setattr(envelope, "check_distinct", lambda keys: None)
        world.__dict__["task"] = world.signed(build_config(*asked))
        if third(keys) != keys[0]:
            return
        sent = [send_kahe(world, name, np.full(70, 5)) for name in "ab"]
        known: set[int] = set()
        for index in (0, 2):  # both with the key of the first
            total = make_share_maker(world.task, index, world.hpke[0], {}).begin()
            for one in sent:
                total.add(one.header, one.body["shares"])
            known |= {part for part, _ in total.release(b"", 0)}
        assert known == set(range(world.task.sharing.subshares))  # a 2-of-3 committee of one


def test_the_next_epoch_needs_both_halves_new() -> None:
    world = World()
    fresh = [HpkeKey.generate().public for _ in range(3)]
    for half in (
        world.hpke[1].public[:MLKEM_PUBLIC_BYTES] + fresh[0][MLKEM_PUBLIC_BYTES:],
        fresh[0][:MLKEM_PUBLIC_BYTES] + world.hpke[1].public[MLKEM_PUBLIC_BYTES:],
    ):
        assert share_a_half(half, world.hpke[1].public)
        with expect_problem(BAD_COMMITTEE, "last epoch"):
            next_epoch(world.task.config, committee(world, [half, *fresh[1:]]), world.authority.key.public, bytes(32))
    config = next_epoch(world.task.config, committee(world, fresh), world.authority.key.public, bytes(range(32)))
    assert (config.epoch, config.model.initial_model) == (2, bytes(range(32)))


def test_whoever_enrols_has_its_hpke_key() -> None:
    key = SigningKey.generate()
    assert issue_credential(Authority().key, enroll_request("a", "holder", key, KEY), "holder", now=NOW, days=1)


@pytest.mark.parametrize("what", ["nothing", "zeros", "stolen", "other_name", "other_key"])
def test_a_key_of_somebody_else_is_not_enrolled(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thief may have seen the owner's own request, and so its proof."""
    owner, thief = SigningKey.generate(), SigningKey.generate()
    proof = {
        "nothing": b"",
        "zeros": bytes(64),
        "stolen": KEY.prove(possession_message("owner", owner.public, KEY.public)),
        "other_name": KEY.prove(possession_message("owner", thief.public, KEY.public)),
        "other_key": OTHER.prove(possession_message("thief", thief.public, KEY.public)),
    }[what]
    request = thief.sign(EnrollRequest("thief", "holder", thief.public, int(NOW), KEY.public, proof))
    with expect_problem(BAD_SIGNATURE):
        issue_credential(Authority().key, request, "holder", now=NOW, days=1)
    with monkeypatch.context() as off:
        off.setattr(enrollment.envelope, "check_possession", lambda proof, public, message: None)  # type: ignore[attr-defined]
        assert issue_credential(Authority().key, request, "holder", now=NOW, days=1)


@pytest.mark.parametrize("role", ["client", "server"])
def test_only_holders_have_one(role: ProblemType) -> None:
    key = SigningKey.generate()
    with expect_problem(MALFORMED):
        issue_credential(Authority().key, enroll_request("a", role, key, KEY), role, now=NOW, days=1)  # type: ignore[arg-type]


def test_holders_prove_theirs_when_they_begin_and_when_they_rotate(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE
    from he_protocol.identity.jws import jwk_x

    signer = Authority().key
    credential = issue_credential(signer, new_holder(tmp_path, "bank-a", NOW), "holder", now=NOW, days=1)
    (tmp_path / CREDENTIAL_FILE).write_text(credential)
    (tmp_path / AUTHORITY_FILE).write_text(jwk_x(signer.public))
    assert issue_credential(signer, rotate(tmp_path, NOW), "holder", now=NOW, days=1)
