"""The frame: prefix, head, body."""

from __future__ import annotations

import pytest

from he_protocol.framing import HEAD_LIMIT, PREFIX_BYTES, head_size, split, start
from he_protocol.problems import MALFORMED, TOO_LARGE

from .refusals import refused


def test_a_frame_is_length_head_body():
    assert start(b"head") == b"\x04\0\0\0head"
    head, body = split(start(b"head") + b"body")
    assert (head, bytes(body)) == (b"head", b"body")
    assert split(start(b"")) == (b"", b"")


def test_the_limit_is_inclusive():
    assert head_size(HEAD_LIMIT.to_bytes(PREFIX_BYTES, "little")) == HEAD_LIMIT
    for size in (HEAD_LIMIT + 1, 2**32 - 1):
        with refused(TOO_LARGE, str(HEAD_LIMIT)):
            head_size(size.to_bytes(PREFIX_BYTES, "little"))
        with refused(TOO_LARGE):  # before the bytes themselves are looked at
            split(size.to_bytes(PREFIX_BYTES, "little"))


@pytest.mark.parametrize("cut", range(8))
def test_a_cut_frame_is_refused(cut):
    with refused(MALFORMED, "ends inside its " + ("length" if cut < 4 else "head")):
        split((start(b"head") + b"body")[:cut])
    if cut != 4:
        with refused(MALFORMED):
            head_size(bytes(cut))
