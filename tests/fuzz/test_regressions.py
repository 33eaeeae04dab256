"""What fuzzing has found, with the bytes that showed it. Inputs of targets are kept in `corpus` instead."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from joserfc.util import urlsafe_b64encode
from msgspec.structs import replace

from he_party.keyfile import KeyRecord, read_private
from he_protocol.config import TaskConfig
from he_protocol.documents import TaskStatus
from he_protocol.errors import TEXT_LIMIT, ProblemError
from he_protocol.messages import from_json, to_json
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.problems import BAD_KEY_FILE, MALFORMED, UNEXPECTED_ANSWER
from he_protocol.schemes import seal_codec
from he_testing.problems import expect_problem
from tests.fuzz.targets.safetensors_file import read

from .targets.safetensors_file import file
from .vectors import MESSAGES

DEEP = b'{"later":' + b"[" * 100_000


def test_deep_nesting_in_a_member_that_a_reader_skips():
    """msgspec raised RecursionError: a server could end a client with one answer."""
    with expect_problem(MALFORMED):
        from_json(DEEP, TaskStatus)
    assert ProblemError.from_document(DEEP, 400).problem is UNEXPECTED_ANSWER


@pytest.mark.parametrize("text", ["\ud800", "a" * 1_000_000])
def test_refusals_that_quote_anything(text):
    """A lone surrogate could not be encoded: the refusal itself failed. Long texts came back whole."""
    sent = ProblemError(MALFORMED, text, expected=text, got=text)
    assert len(sent.document()) < 4 * TEXT_LIMIT
    assert ProblemError.from_document(sent.document(), 400).detail == sent.detail


def test_a_key_file_with_a_negative_number_of_rounds(tmp_path: Path):
    """OverflowError from the key derivation."""
    path = tmp_path / "key"
    header = b'{"alg":"PBES2-HS512+A256KW","enc":"A256GCM","p2c":-5,"p2s":"aaaa"}'
    parts = (header, bytes(40), bytes(12), b"c", bytes(16))
    path.write_bytes(b".".join(urlsafe_b64encode(part) for part in parts))
    path.chmod(0o600)
    with pytest.warns(match="iteration count"), expect_problem(BAD_KEY_FILE):
        read_private(path, KeyRecord, "a passphrase of fair length")


def test_a_key_file_with_a_short_private_key():
    """It was read, and failed with ValueError where it was first used."""
    with expect_problem(MALFORMED):
        from_json(to_json(KeyRecord("a", bytes(32), b"short")), KeyRecord)


@pytest.mark.parametrize(
    "model",
    [
        file({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, bytes(2)),
        file({"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        file({"w": {"dtype": "F32", "shape": [0] + [1] * 100, "data_offsets": [0, 0]}}),
    ],
    ids=["a type that numpy does not have", "a dimension above 63 bits", "more dimensions than numpy has"],
)
def test_a_model_that_safetensors_reads_and_numpy_does_not(model):
    """KeyError and ValueError in a client that fetched it."""
    with expect_problem(UNEXPECTED_ANSWER):
        read(model)


MODULI, HEAD = (97, 113), 73
PAYLOAD = seal_codec.unwrap(seal_codec.ciphertext(np.zeros((2, 2, 8), np.uint64), MODULI, 4.0))[1]


@pytest.mark.parametrize(
    ("at", "raw"),
    [
        (HEAD - 16, struct.pack("<d", 8.0)),
        (HEAD - 16, struct.pack("<d", float("nan"))),
        (HEAD - 8, struct.pack("<Q", 2)),
        (HEAD, b"\x00"),
        (HEAD + 5, b"\x01"),
        (HEAD + 8, struct.pack("<Q", 1)),
        (HEAD + 16, struct.pack("<Q", 1)),
    ],
    ids=["scale", "no scale", "correction", "magic", "compression", "size of the residues", "count of the residues"],
)
def test_every_field_of_a_ciphertext_is_checked(at, raw):
    """These were skipped, so that other bytes were the same ciphertext."""
    np.testing.assert_array_equal(seal_codec.read_ciphertext(PAYLOAD, MODULI, 8, 4.0), 0)
    with expect_problem(MALFORMED):
        seal_codec.read_ciphertext(PAYLOAD[:at] + raw + PAYLOAD[at + len(raw) :], MODULI, 8, 4.0)


def test_reserved_bytes_of_a_seal_object():
    """They were skipped."""
    with expect_problem(MALFORMED):
        seal_codec.unwrap(PAYLOAD[HEAD : HEAD + 6] + b"\x01" + PAYLOAD[HEAD + 7 :])


def test_a_plan_with_a_clip_norm_whose_square_is_no_float():
    """OverflowError while the task was checked."""
    config = from_json(next(v["payload"] for v in MESSAGES if v["type"] == "TaskConfig").encode(), TaskConfig)
    plan = PrivacyPlan("client", 2.0**600, 1.0, 1.0, 1e-5, 8.0)
    with pytest.raises(ProblemError, match="sum-could-wrap"):
        replace(config, privacy=plan).check()
