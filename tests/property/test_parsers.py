"""Whatever bytes come, a parser answers or refuses; it never fails in another way."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_protocol import framing, messages, seal
from he_protocol.identity import check_request
from he_protocol.messages import Message, decode, encode
from he_protocol.problems import PROBLEMS, Refusal
from he_protocol.signing import payload_hash, public_from_jwk, read_unverified, verify
from he_protocol.task import TaskConfig

KINDS = [k for k in vars(messages).values() if isinstance(k, type) and issubclass(k, Message) and k is not Message] + [
    TaskConfig
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), st.one_of(st.binary(), JSON.map(lambda v: json.dumps(v).encode())))
def test_decode_answers_or_refuses(kind, data):
    with suppress(Refusal):
        decode(data, kind)


@given(st.sampled_from(KINDS), st.data())
def test_decode_refuses_any_damage_to_the_right_fields(kind, data):
    """Objects with the right names and arbitrary values."""
    fields = kind.__struct_fields__
    document = {name: data.draw(JSON) for name in fields}
    with suppress(Refusal):
        decode(json.dumps(document).encode(), kind)


@given(
    st.builds(
        messages.Part,
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        st.integers(0, 2**53),
        st.binary(min_size=32, max_size=32),
    )
)
def test_what_is_encoded_decodes_to_itself(part):
    assert decode(encode(part), messages.Part) == part


def segment(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


TOKENS = st.one_of(
    st.text(),
    st.lists(st.binary(max_size=40).map(segment), min_size=3, max_size=3).map(".".join),
    st.tuples(JSON, st.binary(max_size=40), st.binary(max_size=64)).map(
        lambda t: f"{segment(json.dumps(t[0]).encode())}.{segment(t[1])}.{segment(t[2])}"
    ),
)


@given(TOKENS)
def test_tokens_are_refused_one_way(token):
    with pytest.raises(Refusal):
        verify(token, messages.Receipt, bytes(32))
    with pytest.raises(Refusal):
        read_unverified(token, messages.Receipt)
    with suppress(Refusal):
        payload_hash(token)
    with pytest.raises(Refusal):
        check_request(f"DPoP {token}", token, authority=bytes(32), audience="s", method="GET", path="/", now=1.0)


@given(st.text())
def test_keys_of_credentials(text):
    with suppress(Refusal):
        assert len(public_from_jwk(text)) == 32


@given(st.binary(max_size=64))
def test_frames(data):
    with suppress(Refusal):
        head, body = framing.split(data)
        assert framing.start(head) + bytes(body) == data


@given(st.binary(), st.binary())
def test_frames_come_back(head, body):
    got = framing.split(framing.start(head) + body)
    assert (got[0], bytes(got[1])) == (head, body)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(seal.wrap)))
def test_seal_bytes(data):
    for read in (seal.unwrap, seal.read_vector, seal.refuse_private):
        with suppress(Refusal):
            read(data)
    with pytest.raises(Refusal):
        seal.read_ciphertext(data, (97, 113), 8)


@given(
    st.lists(
        st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.binary(max_size=20), st.integers(0, 2**64 - 1), st.floats())),
        max_size=6,
    )
)
def test_protobuf_fields_come_back(fields):
    data = seal._message(*fields)
    found = list(seal._fields(data))
    assert [number for number, _ in found] == [number for number, _ in fields]
    for (_, sent), (_, came) in zip(fields, found, strict=True):
        if isinstance(sent, bytes):
            assert came == sent


@given(st.sampled_from(sorted(PROBLEMS)), st.text(), st.text(), st.text())
def test_refusals_come_back(slug, detail, expected, got):
    sent = Refusal(PROBLEMS[slug], detail, expected=expected, got=got)
    try:
        document = sent.document()
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    came = Refusal.from_document(document, 400)
    assert (came.problem, came.detail, came.expected, came.got) == (sent.problem, detail, expected, got)


@given(st.binary())
def test_any_answer_is_some_refusal(body):
    assert Refusal.from_document(body, 500).problem in PROBLEMS.values()
