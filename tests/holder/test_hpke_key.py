"""A holder's HPKE key, and that no object which holds a secret shows it."""

from __future__ import annotations

import pytest

from he_holder.holder import EpochSecret, SubshareSeed
from he_holder.hpke_key import PRIVATE_BYTES, HpkeKey
from he_holder.schemes.ckks import SecretSubshare
from he_party.keyfile import KeyRecord
from he_protocol.envelope import PUBLIC_BYTES, seal
from he_protocol.identity.jws import SigningKey
from he_protocol.problems import BAD_KEY_FILE, DIGEST_MISMATCH
from he_testing.problems import expect_problem

KEY = HpkeKey(bytes(range(PRIVATE_BYTES)))
BOX = seal(b"a secret", KEY.public, b"here")


def test_round_trip() -> None:
    assert KEY.open(BOX, b"here") == b"a secret"
    assert KEY.open(seal(b"", KEY.public, b""), b"") == b""


def test_the_public_half_is_fixed_by_the_private_one() -> None:
    assert len(KEY.public) == PUBLIC_BYTES
    assert HpkeKey(KEY.private).public == KEY.public
    assert HpkeKey.generate().public != HpkeKey.generate().public


@pytest.mark.parametrize("info", [b"", b"her", b"here ", b"Here"])
def test_another_context(info: bytes) -> None:
    with expect_problem(DIGEST_MISMATCH):
        KEY.open(BOX, info)


def test_another_key() -> None:
    with expect_problem(DIGEST_MISMATCH):
        HpkeKey.generate().open(BOX, b"here")


@pytest.mark.parametrize("half", [slice(0, 64), slice(64, 96)], ids=["mlkem", "x25519"])
def test_one_half_of_the_key_is_not_enough(half: slice) -> None:
    """Hybrid: who has broken only one of the two problems reads nothing."""
    private = bytearray(HpkeKey.generate().private)
    private[half] = KEY.private[half]
    with expect_problem(DIGEST_MISMATCH):
        HpkeKey(bytes(private)).open(BOX, b"here")


@pytest.mark.parametrize("at", [0, 500, 1087, 1088, 1119, len(BOX) - 17, -1])
def test_a_flipped_bit(at: int) -> None:
    changed = bytearray(BOX)
    changed[at] ^= 1
    with expect_problem(DIGEST_MISMATCH):
        KEY.open(bytes(changed), b"here")


@pytest.mark.parametrize("box", [b"", BOX[:40], BOX[:-1], BOX + b"\0"], ids=["empty", "head", "short", "long"])
def test_a_box_of_another_length(box: bytes) -> None:
    with expect_problem(DIGEST_MISMATCH):
        KEY.open(box, b"here")


@pytest.mark.parametrize("size", [0, PRIVATE_BYTES - 1, PRIVATE_BYTES + 1])
def test_a_private_key_of_another_length(size: int) -> None:
    with expect_problem(BAD_KEY_FILE, f"got {size or 'nothing'}" if size else "expected 96"):
        HpkeKey(bytes(size))


SECRET = b"\xa7SECRET" + bytes(25)

HOLDERS_OF_SECRETS = [
    HpkeKey(SECRET * 3),
    KeyRecord("alice", bytes(32), SECRET),
    EpochSecret(bytes(32), 1, (SubshareSeed(0, SECRET),)),
    SubshareSeed(0, SECRET),
    SigningKey(bytes(32), SECRET),
    SecretSubshare(SECRET, SECRET, SECRET),
]


@pytest.mark.parametrize("holder", HOLDERS_OF_SECRETS, ids=lambda holder: type(holder).__name__)
def test_secrets_do_not_show(holder: object) -> None:
    for text in (repr(holder), str(holder), f"{holder}", repr([holder]), repr({"inside": holder})):
        assert "SECRET" not in text
        assert SECRET.hex() not in text
        assert type(holder).__name__ in text
