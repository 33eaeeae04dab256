"""The strict decoder: sizes, ranges, unknown fields, trailing bytes."""

from __future__ import annotations

import json

import msgspec
import pytest

from he_protocol import messages
from he_protocol.messages import MESSAGE_LIMIT, EnrollRequest, Manifest, Message, SectionEntry, from_json, to_json
from he_protocol.problems import MALFORMED, TOO_LARGE, TRAILING_BYTES, UNKNOWN_FIELD
from he_testing.problems import expect_problem

PART = SectionEntry("b", 5, bytes(32))
GOOD = json.loads(to_json(PART))
MESSAGES = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]


@pytest.mark.parametrize("kind", MESSAGES)
def test_every_message_is_frozen_and_strict(kind):
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields


def test_bytes_are_base64_in_json():
    assert GOOD == {"name": "b", "size": 5, "sha256": "A" * 43 + "="}
    assert from_json(to_json(PART), SectionEntry) == PART


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "Upper"},
        {"name": "-dash"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "a" * 65},
        {"name": "é"},
        {"name": None},
        {"size": -1},
        {"size": 2**53 + 1},
        {"size": 1.5},
        {"size": "5"},
        {"size": True},
        {"sha256": "A" * 42},
        {"sha256": ""},
        {"sha256": "A" * 47 + "="},
        {"sha256": "!" * 43 + "="},
        {"sha256": [0] * 32},
    ],
)
def test_values_out_of_range_are_malformed(change):
    with expect_problem(MALFORMED):
        from_json(json.dumps({**GOOD, **change}).encode(), SectionEntry)


@pytest.mark.parametrize("name", ["a", "0", "a" * 64, "a.b-c_d"])
def test_names_in_range_are_accepted(name):
    assert from_json(json.dumps({**GOOD, "name": name, "size": 2**53}).encode(), SectionEntry).name == name


@pytest.mark.parametrize("field", GOOD)
def test_no_field_may_be_missing(field):
    with expect_problem(MALFORMED, field):
        from_json(json.dumps({k: v for k, v in GOOD.items() if k != field}).encode(), SectionEntry)


def test_unknown_fields_are_refused_also_inside():
    with expect_problem(UNKNOWN_FIELD, "more"):
        from_json(json.dumps({**GOOD, "more": 0}).encode(), SectionEntry)
    inner = {"update_id": "A" * 22 + "==", "client": "c", "header": GOOD["sha256"], "bucket": 0, "more": 0}
    body = {"task_hash": GOOD["sha256"], "epoch": 1, "round": 1, "opening": 1, "formed": 0, "model_version": 0}
    body |= {"updates": [inner]}
    with expect_problem(UNKNOWN_FIELD, "updates"):
        from_json(json.dumps(body).encode(), Manifest)
    del inner["more"]
    assert len(from_json(json.dumps(body).encode(), Manifest).updates) == 1
    for number in ("round", "opening"):
        with expect_problem(MALFORMED, number):
            from_json(json.dumps({**body, number: 0}).encode(), Manifest)


@pytest.mark.parametrize("tail", [b"x", b"{}", b" {}", b"\0", b","])
def test_trailing_bytes_are_refused(tail):
    with expect_problem(TRAILING_BYTES):
        from_json(to_json(PART) + tail, SectionEntry)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"1", b"{}", b'{"name":"\xff"}', b'{"name":"\\ud800"}', b"[" * 9999, b"\xef\xbb\xbf{}"],
)
def test_what_is_not_the_message_is_malformed(data):
    with expect_problem(MALFORMED, "SectionEntry"):
        from_json(data, SectionEntry)


def test_a_long_message_is_refused_before_it_is_parsed():
    with expect_problem(TOO_LARGE, str(MESSAGE_LIMIT)):
        from_json(b"x" * (MESSAGE_LIMIT + 1), SectionEntry)
    with expect_problem(TOO_LARGE, "at most 10 bytes"):
        from_json(to_json(PART), SectionEntry, limit=10)
    assert from_json(to_json(PART), SectionEntry, limit=len(to_json(PART))) == PART


def test_roles_are_three():
    request = json.loads(to_json(EnrollRequest("a", "client", bytes(32), 0)))
    for role in ("client", "holder", "server"):
        assert from_json(json.dumps({**request, "role": role}).encode(), EnrollRequest).role == role
    with expect_problem(MALFORMED, "role"):
        from_json(json.dumps({**request, "role": "authority"}).encode(), EnrollRequest)


def test_a_plain_document_ignores_what_it_does_not_know():
    """Answers may grow; only what is signed is strict."""
    from he_protocol.documents import PendingOpenings, Waiting

    said = b'{"rounds":[{"round":1,"stage":"vote","since":3}],"new":2}'
    assert msgspec.json.decode(said, type=PendingOpenings) == PendingOpenings((Waiting(1, "vote"),))
