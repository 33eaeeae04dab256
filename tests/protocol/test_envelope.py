"""HPKE to a holder: opened only by its key, only under its context."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from he_protocol.envelope import MLKEM_PUBLIC_BYTES, PUBLIC_BYTES, SUITE, seal
from he_protocol.problems import MALFORMED
from he_testing.problems import expect_problem

PARTS = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
PRIVATE = MLKEM768X25519PrivateKey(*PARTS)
PUBLIC = b"".join(part.public_key().public_bytes_raw() for part in PARTS)


def test_an_envelope_opens_under_its_context_only():
    box = seal(b"seed", PUBLIC, b"task|epoch")
    assert SUITE.decrypt(box, PRIVATE, b"task|epoch") == b"seed"
    with pytest.raises(InvalidTag):
        SUITE.decrypt(box, PRIVATE, b"task|other")
    with pytest.raises(InvalidTag):
        SUITE.decrypt(box[:-1] + bytes([box[-1] ^ 1]), PRIVATE, b"task|epoch")


def test_sealing_is_randomised():
    assert seal(b"seed", PUBLIC, b"") != seal(b"seed", PUBLIC, b"")


def test_the_size_of_a_public_key_is_fixed():
    assert len(PUBLIC) == PUBLIC_BYTES == MLKEM_PUBLIC_BYTES + 32
    for wrong in (b"", PUBLIC[:-1], PUBLIC + b"\0", PUBLIC[-32:]):
        with expect_problem(MALFORMED, f"{len(wrong)}"):
            seal(b"seed", wrong, b"")


@pytest.mark.parametrize("bad", [b"\xff" * PUBLIC_BYTES, PUBLIC[:MLKEM_PUBLIC_BYTES] + bytes(32)])
def test_a_key_that_is_no_key_is_refused(bad):
    """ML-KEM coefficients above q, and an X25519 point of low order, whose secret anybody knows."""
    with expect_problem(MALFORMED, "HPKE key"):
        seal(b"seed", bad, b"")
