"""The frame: prefix (magic, version, length), head, body."""

from __future__ import annotations

import pytest

from he_protocol.frames import HEAD_LIMIT, MAGIC, head_size, split, start
from he_protocol.problems import MALFORMED, TOO_LARGE, UNKNOWN_PROTOCOL
from he_testing.problems import expect_problem


def test_a_frame_is_length_head_body():
    assert start(b"head") == b"HSF\x02\x04\0\0\0head"
    head, body = split(start(b"head") + b"body")
    assert (head, bytes(body)) == (b"head", b"body")
    assert split(start(b"")) == (b"", b"")


def test_the_limit_is_inclusive():
    assert head_size(MAGIC + HEAD_LIMIT.to_bytes(4, "little")) == HEAD_LIMIT
    for size in (HEAD_LIMIT + 1, 2**32 - 1):
        with expect_problem(TOO_LARGE, str(HEAD_LIMIT)):
            head_size(MAGIC + size.to_bytes(4, "little"))
        with expect_problem(TOO_LARGE):  # before the bytes themselves are looked at
            split(MAGIC + size.to_bytes(4, "little"))


@pytest.mark.parametrize("cut", range(12))
def test_a_cut_frame_is_refused(cut):
    frame = start(b"head") + b"body"
    with expect_problem(MALFORMED, "ends inside its " + ("prefix" if cut < 8 else "head")):
        split(frame[:cut])
    if cut != 8:
        with expect_problem(MALFORMED):
            head_size(frame[:cut])


@pytest.mark.parametrize(
    "magic", [b"", *(b"HSF" + bytes([v]) for v in (0, 1, 3, 255)), b"hsf\x02", b"HSF2", b"\x02FSH"]
)
@pytest.mark.parametrize("length", [b"\x04\0\0\0", b"\xff\xff\xff\xff"])
def test_a_frame_of_another_version_is_not_read(magic, length):
    """Also one from before there were versions, whatever length it claims."""
    frame = magic + length + b"head"
    with expect_problem(UNKNOWN_PROTOCOL, "expected 2"):
        head_size(frame[:8])
    with expect_problem(UNKNOWN_PROTOCOL, "expected 2"):
        split(frame)
