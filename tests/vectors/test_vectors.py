"""The code against the known-answer files, and the files against their generator."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from he_protocol import framing, messages
from he_protocol.gaussian import Gaussian
from he_protocol.identity import check_request, prove_request
from he_protocol.keystream import derive_key, expand, expand_words
from he_protocol.messages import Message, decode, encode
from he_protocol.problems import Refusal
from he_protocol.quantise import quantise
from he_protocol.residues import ResidueLayout, check, fold, pack, unpack
from he_protocol.schemes import load_scheme
from he_protocol.schemes.ckks import common_polynomial
from he_protocol.sharing import Sharing
from he_protocol.signing import SigningKey, payload_hash, read_unverified, token_hash, verify
from he_protocol.task import Task, TaskConfig

from . import make

KINDS: dict[str, type[Message]] = {
    name: kind for name, kind in vars(messages).items() if isinstance(kind, type) and issubclass(kind, Message)
} | {"TaskConfig": TaskConfig}
NESTED = {"Message", "Part", "ManifestEntry", "PartDigest", "SealedSeeds", "Jwk", "Cnf"}


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((make.HERE / f"{name}.json").read_text())


def cases(name: str) -> Any:
    found = load(name)
    return pytest.mark.parametrize(
        "v", found, ids=[v.get("case") or v.get("type") or str(i) for i, v in enumerate(found)]
    )


def spelled(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else value["repeat"] * value["times"]


def raw(v: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(v[name]) for name in names]


def refuses(v: dict[str, Any]) -> Any:
    return pytest.raises(Refusal, match=rf"\[{v['problem']}\]$")


@pytest.mark.parametrize("name", make.FILES)
def test_the_files_are_what_the_generator_makes(name):
    """A changed file is a changed protocol: regenerate only with a new version."""
    assert (make.HERE / name).read_text() == make.text(name)


def test_there_is_no_other_file():
    assert {path.name for path in make.HERE.glob("*.json")} == set(make.FILES)


def test_every_message_has_a_vector():
    assert {v["type"] for v in load("good_messages")} == set(KINDS) - NESTED
    assert {v["type"] for v in load("bad_messages")} == set(KINDS) - NESTED


@cases("good_messages")
def test_good_message(v):
    private, public = raw(v, "private", "public")
    kind = KINDS[v["type"]]
    message = verify(v["token"], kind, public)
    assert encode(message).decode() == v["payload"]
    assert SigningKey(public, private).sign(message) == v["token"]
    assert payload_hash(v["token"]).hex() == v["payload_hash"]
    assert token_hash(v["token"]).hex() == v["token_hash"]
    assert decode(v["payload"].encode(), kind) == read_unverified(v["token"], kind) == message
    for other in set(KINDS) - NESTED - {v["type"]}:
        with pytest.raises(Refusal, match=r"\[bad-signature\]$"):
            verify(v["token"], KINDS[other], public)


@cases("bad_messages")
def test_bad_message(v):
    with refuses(v):
        verify(v["token"], KINDS[v["type"]], *raw(v, "public"))
    with refuses(v):
        read_unverified(v["token"], KINDS[v["type"]])


@cases("bad_signatures")
def test_bad_signature(v):
    with refuses(v):
        verify(spelled(v["token"]), KINDS[v["type"]], *raw(v, "public"))


@cases("bad_sizes")
def test_bad_size(v):
    with refuses(v):
        decode(spelled(v["data"]).encode(), KINDS[v["type"]])


@cases("bad_tasks")
def test_bad_task(v):
    assert verify(v["token"], TaskConfig, *raw(v, "authority"))
    with refuses(v):
        Task.from_token(v["token"], *raw(v, "authority"))


def test_good_task():
    [v] = [v for v in load("good_messages") if v["type"] == "TaskConfig"]
    assert Task.from_token(v["token"], *raw(v, "public")).id == v["payload_hash"]


@cases("good_frames")
def test_good_frame(v):
    frame, head, body = raw(v, "frame", "head", "body")
    got = framing.split(frame)
    assert (got[0], bytes(got[1])) == (head, body)
    assert framing.start(head) + body == frame


@cases("bad_frames")
def test_bad_frame(v):
    with refuses(v):
        framing.split(*raw(v, "frame"))


def layout(v: dict[str, Any]) -> ResidueLayout:
    d = v["layout"]
    return ResidueLayout(d["polynomials"], tuple(d["moduli"]), d["degree"], d["bits"])


@cases("good_residues")
def test_good_residues(v):
    residues = np.array(v["residues"], dtype=np.uint64)
    [packed] = raw(v, "packed")
    assert pack(residues, layout(v)) == packed
    np.testing.assert_array_equal(unpack(packed, layout(v)), residues)


@cases("bad_residues")
def test_bad_residues(v):
    [packed] = raw(v, "packed")
    for read in (unpack, check, lambda data, shape: fold(np.zeros((2, 8), dtype=np.uint64), data, shape)):
        with refuses(v):
            read(packed, layout(v))


@cases("good_sharing")
def test_good_sharing(v):
    sharing = Sharing(v["holders"], v["threshold"])
    assert [list(part) for part in sharing.excluded] == v["excluded"]
    assert [list(sharing.parts_of(h)) for h in range(sharing.holders)] == v["parts_of"]


@cases("bad_sharing")
def test_bad_sharing(v):
    with refuses(v):
        Sharing(v["holders"], v["threshold"])


@cases("good_keystream")
def test_good_keystream(v):
    [key] = raw(v, "key")
    assert expand(key, 40, block=v["block"]).hex() == v["stream"]
    assert expand_words(key, 3, block=v["block"]).tolist() == v["words"]


@cases("good_derived_keys")
def test_good_derived_key(v):
    assert derive_key(v["domain"], *map(bytes.fromhex, v["fields"])).hex() == v["key"]


@cases("good_gaussian")
def test_good_gaussian(v):
    sampler = Gaussian(v["std"])
    words = expand_words(*raw(v, "key"), len(v["samples"]) * sampler.words)
    assert list(sampler.factors) == v["factors"]
    assert sampler.sample(words).tolist() == v["samples"]


@cases("good_quantise")
def test_good_quantise(v):
    values = np.array(v["values"], dtype=np.float32)
    words = expand_words(*raw(v, "key"), values.size)
    assert quantise(values, v["scale"], v["value_range"], words).tolist() == v["integers"]


@cases("good_profiles")
def test_good_profile(v):
    profile = load_scheme(v["scheme"], v["profile"]).profile
    assert profile.fingerprint.hex() == v["fingerprint"]
    a = common_polynomial(profile, *raw(v, "task_hash"), v["epoch"])
    assert hashlib.sha256(a.astype("<u8").tobytes()).hexdigest() == v["common_polynomial_sha256"]
    assert a[0, :, :4].tolist() == v["first_residues"]


def asked(v: dict[str, Any]) -> dict[str, Any]:
    return {name: v[name] for name in ("audience", "method", "path", "now")}


@cases("good_requests")
def test_good_request(v):
    authority, private = raw(v, "authority", "private")
    party, claims = check_request(v["authorization"], v["dpop"], authority=authority, **asked(v))
    assert (party.name, party.role, claims.jti) == (v["name"], v["role"], v["jti"])
    headers = prove_request(SigningKey(party.public, private), v["credential"], **asked(v), jti=v["jti"])
    assert headers == {"Authorization": v["authorization"], "DPoP": v["dpop"]}


@cases("bad_requests")
def test_bad_request(v):
    [authority] = raw(v, "authority")
    with refuses(v):
        check_request(v["authorization"], v["dpop"], authority=authority, **asked(v))
