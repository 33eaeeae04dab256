"""SEAL's and TenSEAL's bytes, written and read by hand; `test_seal_tenseal` holds them against the libraries."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from he_protocol.problems import FINGERPRINT_MISMATCH, MALFORMED, PRIVATE_CONTEXT, RESIDUE_RANGE, TRAILING_BYTES
from he_protocol.schemes import seal_codec
from he_testing.problems import expect_problem
from tests.support.tenseal_vector import ckks_vector

MODULI = (97, 113)
RESIDUES = np.arange(32, dtype=np.uint64).reshape(2, 2, 8)
OBJECT = seal_codec.ciphertext(RESIDUES, MODULI, 4.0)
PAYLOAD = seal_codec.unwrap(OBJECT)[1]


def test_an_object_is_a_header_and_a_payload():
    assert seal_codec.wrap(b"abc").hex() == "5ea1100403000000" + "1300000000000000" + "616263"
    assert seal_codec.unwrap(seal_codec.wrap(b"abc")) == (seal_codec.PLAIN, b"abc")
    compressed = bytearray(seal_codec.wrap(b"abc"))
    compressed[5] = seal_codec.ZSTD
    assert seal_codec.unwrap(bytes(compressed)) == (seal_codec.ZSTD, b"abc")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: b"", MALFORMED),
        (lambda d: d[:15], MALFORMED),
        (lambda d: b"\x5f" + d[1:], MALFORMED),
        (lambda d: d[:3] + b"\x03" + d[4:], MALFORMED),
        (lambda d: d[:-1], MALFORMED),
        (lambda d: d + b"x", TRAILING_BYTES),
        (lambda d: d[:8] + struct.pack("<Q", 2**63) + d[16:], MALFORMED),
    ],
)
def test_other_objects_are_refused(change, problem):
    with expect_problem(problem):
        seal_codec.unwrap(change(seal_codec.wrap(b"abc")))


def test_a_ciphertext_comes_back():
    np.testing.assert_array_equal(seal_codec.read_ciphertext(PAYLOAD, MODULI, 8, 4.0), RESIDUES)
    assert len(OBJECT) == 16 + 73 + 16 + 8 + 8 * 32
    assert PAYLOAD[:32] == seal_codec.parms_id(8, MODULI)


def patch(at: int, raw: bytes) -> bytes:
    return PAYLOAD[:at] + raw + PAYLOAD[at + len(raw) :]


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", MALFORMED),
        (PAYLOAD[:72], MALFORMED),
        (PAYLOAD[:-1], MALFORMED),
        (PAYLOAD + b"\0", TRAILING_BYTES),
        (patch(0, b"\0"), FINGERPRINT_MISMATCH),
        (patch(32, b"\0"), MALFORMED),  # not in NTT form
        (patch(33, b"\x03"), MALFORMED),  # three polynomials
        (patch(41, b"\x04"), MALFORMED),  # degree
        (patch(49, b"\x03"), MALFORMED),  # limbs
        (patch(97, struct.pack("<Q", 97)), RESIDUE_RANGE),
        (patch(97 + 8 * 31, struct.pack("<Q", 113)), RESIDUE_RANGE),
        (patch(97, b"\xff" * 8), RESIDUE_RANGE),
    ],
)
def test_other_ciphertexts_are_refused(payload, problem):
    with expect_problem(problem):
        seal_codec.read_ciphertext(payload, MODULI, 8, 4.0)


def test_residues_just_below_their_prime_are_accepted():
    top = patch(97, struct.pack("<Q", 96))
    assert seal_codec.read_ciphertext(top, MODULI, 8, 4.0)[0, 0, 0] == 96


def test_other_parameters_are_refused_by_name():
    for moduli, degree in (((97, 117), 8), ((97,), 8), (MODULI, 16), (MODULI[::-1], 8)):
        with expect_problem(FINGERPRINT_MISMATCH):
            seal_codec.read_ciphertext(PAYLOAD, moduli, degree, 4.0)


def test_a_vector_yields_its_objects():
    vector = ckks_vector(300, OBJECT, 4.0)
    assert vector[:4].hex() == "0a02ac02"
    assert seal_codec.read_vector(vector) == [OBJECT]
    assert seal_codec.read_vector(b"") == []
    assert seal_codec.read_vector(seal_codec._message((2, b"a"), (2, b"b"))) == [b"a", b"b"]


def test_a_private_part_is_refused():
    public = seal_codec.public_context(np.zeros((2, 2, 8), dtype=np.uint64), MODULI, 4.0)
    seal_codec.refuse_private(public)
    for private in (
        public + seal_codec._message((3, b"key")),
        seal_codec._message((3, b"")) + public,
        seal_codec._message((3, 1)),
    ):
        with expect_problem(PRIVATE_CONTEXT):
            seal_codec.refuse_private(private)


@pytest.mark.parametrize("high", [1 << 32, 1 << 34, 7 << 32, 1 << 63])
def test_a_private_part_cannot_hide_behind_a_long_tag(high):
    """Protobuf cuts tags to 32 bits: 2^32 + 26 is field 3 for TenSEAL, and was field 536870915 here."""
    with expect_problem(MALFORMED, "tag"):
        seal_codec.refuse_private(seal_codec._varint(high + 26) + b"\x03key")


def test_a_padded_tag_is_still_field_three():
    with expect_problem(PRIVATE_CONTEXT):
        seal_codec.refuse_private(b"\x9a\x80\x00\x03key")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # a number that does not end
        b"\xff" * 11,
        b"\x0a",  # no length
        b"\x0a\x05abc",  # ends after the data
        b"\x09\0\0",  # half a double
        b"\x08",  # no number
        b"\x0b",  # a group
        b"\x0c",
        b"\x0d\0\0\0\0",  # 32-bit fields are not used
        b"\x0f",
    ],
)
def test_what_is_not_protobuf_is_malformed(data):
    for read in (seal_codec.refuse_private, seal_codec.read_vector):
        with expect_problem(MALFORMED, "protobuf"):
            read(data)
