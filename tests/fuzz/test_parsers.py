"""Whatever bytes come, a parser answers or refuses; it never fails in another way.

Formats that are fuzzed by coverage too have their properties in `targets`.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
import tenseal
from hypothesis import given, settings
from hypothesis import strategies as st

from he_holder.hpke_key import HpkeKey
from he_protocol import envelope, frames, messages
from he_protocol.config import TaskConfig
from he_protocol.errors import TEXT_LIMIT, ProblemError
from he_protocol.identity.jws import payload_hash, public_from_jwk, read_unverified, verify
from he_protocol.identity.requests import check_request
from he_protocol.messages import from_json, to_json
from he_protocol.problems import PROBLEMS
from he_protocol.schemes import seal_codec

from .mutation import mutated
from .vectors import KINDS, MESSAGES, load

ALL = list(KINDS.values())
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)


@given(st.sampled_from(ALL), st.one_of(st.binary(), JSON.map(lambda v: json.dumps(v).encode())))
def test_decode_answers_or_refuses(kind, data):
    with suppress(ProblemError):
        from_json(data, kind)


@given(st.sampled_from(ALL), st.data())
def test_decode_refuses_any_damage_to_the_right_fields(kind, data):
    """Objects with the right names and arbitrary values."""
    fields = kind.__struct_fields__
    document = {name: data.draw(JSON) for name in fields}
    with suppress(ProblemError):
        from_json(json.dumps(document).encode(), kind)


@given(
    st.builds(
        messages.SectionEntry,
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        st.integers(0, 2**53),
        st.binary(min_size=32, max_size=32),
    )
)
def test_what_is_encoded_decodes_to_itself(part):
    assert from_json(to_json(part), messages.SectionEntry) == part


ANY_TEXT = st.one_of(st.text(st.characters()), st.text(max_size=9).map(lambda text: text * 300))


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
    with pytest.raises(ProblemError):
        verify(token, messages.Receipt, bytes(32))
    with pytest.raises(ProblemError):
        read_unverified(token, messages.Receipt)
    with suppress(ProblemError):
        payload_hash(token)
    with pytest.raises(ProblemError):
        check_request(f"DPoP {token}", token, authority=bytes(32), audience="s", method="GET", path="/", now=1.0)


@given(st.text())
def test_keys_of_credentials(text):
    with suppress(ProblemError):
        assert len(public_from_jwk(text)) == 32


@given(st.binary(max_size=64))
def test_frames(data):
    with suppress(ProblemError):
        head, body = frames.split(data)
        assert frames.start(head) + bytes(body) == data


@given(st.binary(), st.binary())
def test_frames_come_back(head, body):
    got = frames.split(frames.start(head) + body)
    assert (got[0], bytes(got[1])) == (head, body)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(seal_codec.wrap)))
def test_seal_bytes(data):
    for read in (seal_codec.unwrap, seal_codec.read_vector, seal_codec.refuse_private):
        with suppress(ProblemError):
            read(data)
    with pytest.raises(ProblemError):
        seal_codec.read_ciphertext(data, (97, 113), 8, 4.0)


@given(
    st.lists(
        st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.binary(max_size=20), st.integers(0, 2**64 - 1), st.floats())),
        max_size=6,
    )
)
def test_protobuf_fields_come_back(fields):
    data = seal_codec._message(*fields)
    found = list(seal_codec._fields(data))
    assert [number for number, _ in found] == [number for number, _ in fields]
    for (_, sent), (_, came) in zip(fields, found, strict=True):
        if isinstance(sent, bytes):
            assert came == sent


@given(st.sampled_from(sorted(PROBLEMS)), ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_refusals_come_back(slug, detail, expected, got):
    """With lone surrogates replaced and long texts cut, whatever they quote."""
    sent = ProblemError(PROBLEMS[slug], detail, expected=expected, got=got)
    assert len(sent.document()) < 30 * TEXT_LIMIT
    came = ProblemError.from_document(sent.document(), 400)
    assert (came.problem, came.detail, came.expected, came.got) == (sent.problem, sent.detail, sent.expected, sent.got)
    if detail.isascii() and len(detail) <= TEXT_LIMIT:
        assert came.detail == detail


@given(st.binary())
def test_any_answer_is_some_refusal(body):
    assert ProblemError.from_document(body, 500).problem in PROBLEMS.values()


@given(st.data())
def test_what_was_signed_is_all_that_verifies(data):
    """Damage to a good token is refused, and so is every other spelling of it."""
    v = data.draw(st.sampled_from(MESSAGES))
    token = data.draw(mutated([v["token"].encode()])).decode("utf-8", "surrogateescape")
    if token != v["token"]:
        with pytest.raises(ProblemError):
            verify(token, KINDS[v["type"]], bytes.fromhex(v["public"]))


@given(st.data())
def test_damaged_request_proofs_are_refused(data):
    v = data.draw(st.sampled_from(load("good_requests")))
    names = ("authorization", "dpop", "audience", "method", "path")
    given_ = {name: v[name] for name in names}
    name = data.draw(st.sampled_from(names))
    given_[name] = data.draw(mutated([v[name].encode()])).decode("utf-8", "surrogateescape")
    known = {"authority": bytes.fromhex(v["authority"]), "now": v["now"]}
    asked = {name: given_[name] for name in ("audience", "method", "path")}
    if given_[name] == v[name]:
        check_request(given_["authorization"], given_["dpop"], **asked, **known)
    else:
        with pytest.raises(ProblemError):
            check_request(given_["authorization"], given_["dpop"], **asked, **known)


HOLDER = HpkeKey.generate()
BOX = envelope.seal(b"seeds", HOLDER.public, b"info")


@given(mutated([BOX]), mutated([b"info"]))
def test_envelopes_open_whole_and_in_their_context(box, info):
    if (box, info) == (BOX, b"info"):
        assert HOLDER.open(box, info) == b"seeds"
    else:
        with pytest.raises(ProblemError):
            HOLDER.open(box, info)


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=1216, max_size=1216), mutated([HOLDER.public])))
def test_holder_keys_are_used_or_refused(public):
    with suppress(ProblemError):
        assert len(envelope.seal(b"", public, b"")) > 1000


NUMBERS = st.one_of(
    st.integers(0, 2**53), st.floats(0, allow_infinity=False), st.sampled_from([1, 2**53, 1e308, 5e-324, 2.0**512])
)


@given(st.data())
def test_every_task_is_planned_or_refused(data):
    """Numbers of any size in a task's configuration lead to a checked task or to a refusal."""
    fields = json.loads(next(v["payload"] for v in MESSAGES if v["type"] == "TaskConfig"))
    tables = [fields] + [table for table in fields.values() if isinstance(table, dict)]
    numbers = [(table, name) for table in tables for name, value in table.items() if isinstance(value, int | float)]
    for table, name in data.draw(st.lists(st.sampled_from(numbers), max_size=6)):
        table[name] = data.draw(NUMBERS)
    fields["privacy"]["unit"] = data.draw(st.sampled_from(["none", "record", "client"]))
    fields["aggregation"]["weighting"] = data.draw(st.sampled_from(["uniform", "examples", "fixed"]))
    fields["model"]["tensors"] = [{"name": "w", "shape": data.draw(st.lists(st.integers(1, 2**53), max_size=40))}]
    with suppress(ProblemError):
        from_json(json.dumps(fields).encode(), TaskConfig).check()


PRIVATE = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 2048, coeff_mod_bit_sizes=[27, 27]).serialize(save_secret_key=True)
FIELDS = st.lists(st.tuples(st.integers(1, 4), st.one_of(st.binary(max_size=4), st.integers(0, 9))), max_size=3)


@settings(max_examples=20)
@given(
    st.one_of(mutated([PRIVATE[:40] + PRIVATE[-40:], PRIVATE]), FIELDS.map(lambda f: PRIVATE + seal_codec._message(*f)))
)
def test_no_spelling_hides_a_secret_key_from_us_that_tenseal_finds(data):
    """TenSEAL's own protobuf reader may see no private part where ours saw none."""
    try:
        seal_codec.refuse_private(data)
    except ProblemError:
        return
    try:
        context = tenseal.context_from(data)
    except (RuntimeError, ValueError):
        return
    assert not context.has_secret_key()
