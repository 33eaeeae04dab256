"""The code against the known-answer files, and the files against their generator."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from he_holder.schemes import make_share_maker
from he_protocol import frames, messages
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.ntt_lanes import CommonProduct
from he_protocol.arithmetic.residues import ResidueLayout, check, fold, pack, unpack
from he_protocol.committee import parse_committee
from he_protocol.config import TaskConfig
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, payload_hash, read_unverified, token_hash, verify
from he_protocol.identity.requests import check_request, prove_request
from he_protocol.messages import Message, from_json, to_json
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.quantise import quantise
from he_protocol.schemes import kahe
from he_protocol.schemes.ckks import common_polynomial
from he_protocol.schemes.registry import load_scheme
from he_protocol.sharing import Sharing
from he_protocol.task import Task
from tests.support.kahe import FixedWords

from . import arithmetic, make, parties
from .kahe import kahe_updates

KINDS: dict[str, type[Message]] = {
    name: kind for name, kind in vars(messages).items() if isinstance(kind, type) and issubclass(kind, Message)
} | {"TaskConfig": TaskConfig}
NESTED = {
    "Exclusion",
    "Message",
    "Post",
    "SectionEntry",
    "ManifestEntry",
    "SubshareDigest",
    "ShareVector",
    "FailedBucket",
    "SealedSeeds",
    "Jwk",
    "Cnf",
}


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
    return pytest.raises(ProblemError, match=rf"\[{v['problem']}\]$")


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
    assert to_json(message).decode() == v["payload"]
    assert SigningKey(public, private).sign(message) == v["token"]
    assert payload_hash(v["token"]).hex() == v["payload_hash"]
    assert token_hash(v["token"]).hex() == v["token_hash"]
    assert from_json(v["payload"].encode(), kind) == read_unverified(v["token"], kind) == message
    for other in set(KINDS) - NESTED - {v["type"]}:
        with pytest.raises(ProblemError, match=r"\[bad-signature\]$"):
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


@cases("bad_versions")
def test_bad_version(v):
    for read in (lambda: verify(v["token"], KINDS[v["type"]], *raw(v, "public")),
                 lambda: read_unverified(v["token"], KINDS[v["type"]]),
                 lambda: payload_hash(v["token"])):  # fmt: skip
        with refuses(v):
            read()


def test_other_versions_of_every_message_are_refused():
    assert {v["type"] for v in load("bad_versions")} == set(KINDS) - NESTED


@cases("bad_sizes")
def test_bad_size(v):
    with refuses(v):
        from_json(spelled(v["data"]).encode(), KINDS[v["type"]])


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
    got = frames.split(frame)
    assert (got[0], bytes(got[1])) == (head, body)
    assert frames.start(head) + body == frame


@cases("bad_frames")
def test_bad_frame(v):
    with refuses(v):
        frames.split(*raw(v, "frame"))


def layout(v: dict[str, Any]) -> ResidueLayout:
    return arithmetic.layout_of(v["layout"])


@cases("good_residues")
def test_good_residues(v):
    residues = np.array(v["residues"], dtype=np.uint64)
    [packed] = raw(v, "packed")
    assert pack(residues, layout(v)) == packed
    np.testing.assert_array_equal(unpack(packed, layout(v)), residues)


@cases("bad_residues")
def test_bad_residues(v):
    [packed] = raw(v, "packed")
    for read in (unpack, check, lambda data, shape: fold(np.zeros((2, 64), dtype=np.uint64), data, shape)):
        with refuses(v):
            read(packed, layout(v))


@cases("bad_layouts")
def test_bad_layout(v):
    with pytest.raises(ValueError, match="multiple of 64"):
        layout(v)


@cases("good_committees")
def test_good_committee(v):
    committee = parse_committee(v["committee"])
    found = {name: getattr(committee, name) for name in ("colluders", "away", "needed_to_exclude")}
    assert found | {"committee": str(committee)} == v


@cases("bad_committees")
def test_bad_committee(v):
    with refuses(v):
        parse_committee(v["committee"])


@cases("good_sharing")
def test_good_sharing(v):
    sharing = Sharing(v["holders"], v["threshold"])
    assert [list(part) for part in sharing.excluded] == v["excluded"]
    assert [list(sharing.subshares_of(h)) for h in range(sharing.holders)] == v["subshares_of"]


@cases("bad_sharing")
def test_bad_sharing(v):
    with refuses(v):
        Sharing(v["holders"], v["threshold"])


@cases("good_keystream")
def test_good_keystream(v):
    [key] = raw(v, "key")
    assert expand_words(key, 5, block=v["block"]).tobytes().hex() == v["stream"]
    assert expand_words(key, 3, block=v["block"]).tolist() == v["words"]


@cases("good_derived_keys")
def test_good_derived_key(v):
    assert derive_key(v["domain"], *map(bytes.fromhex, v["fields"])).hex() == v["key"]


@cases("good_gaussian")
def test_good_gaussian(v):
    sampler = Gaussian(v["std"])
    count = len(v["samples"])
    words = expand_words(*raw(v, "key"), sampler.words(count))
    assert list(sampler.factors) == v["factors"]
    assert words.size == v["words"]
    assert sampler.sample(words, count).tolist() == v["samples"]


@cases("good_quantise")
def test_good_quantise(v):
    values = np.array(v["values"], dtype=np.float32)
    words = expand_words(*raw(v, "key"), values.size // 2).view("<u4")
    assert quantise(values, v["scale"], v["value_range"], words).tolist() == v["integers"]


@cases("good_profiles")
def test_good_profile(v):
    profile = load_scheme(v["scheme"], v["profile"]).profile
    assert profile.fingerprint.hex() == v["fingerprint"]
    if v["scheme"] != "ckks":
        return
    a = common_polynomial(profile, *raw(v, "epoch_id"))
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


@cases("good_kahe_products")
def test_good_kahe_product(v):
    profile = kahe.PROFILES[v["profile"]]
    sampler = Gaussian(profile.error_std, profile.error_tail)
    words = expand_words(*raw(v, "secret_key"), sampler.words(profile.degree))
    secret = sampler.sample(words, profile.degree)
    assert secret[:8].tolist() == v["secret_first"]
    assert kahe.common_key(*raw(v, "epoch_id")).hex() == v["common_key"]
    rows = CommonProduct(*raw(v, "common_key"), secret, profile.modulus).groups(v["group"])
    assert rows[:, :4].tolist() == v["first_of_each"]
    assert sha(rows.astype("<u4").tobytes()) == v["sha256"]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kahe_task(v: dict[str, Any]) -> Task:
    config = from_json(v["config"].encode(), TaskConfig)
    config.check()
    return Task(config, "", hashlib.sha256(v["config"].encode()).digest())


@cases("good_kahe_updates")
def test_good_kahe_update(v):
    """From its parts: b is a*s + e + v, and the explicit part is s less the parts that seeds stand for."""
    task, [update_id] = kahe_task(v), raw(v, "update_id")
    profile = kahe.PROFILES[task.config.encryption.profile]
    assert task.epoch_id.hex() == v["epoch_id"]
    assert {part.name: part.size for part in task.body} == v["sizes"]
    words = FixedWords(v["words"].encode())
    sampler = Gaussian(profile.error_std, profile.error_tail)
    secret = sampler.sample(words(sampler.words(profile.degree)), profile.degree)
    rows = task.section("sum").layout.rows
    errors = sampler.sample(words(sampler.words(rows * profile.degree)), rows * profile.degree)
    values = (expand_words(*raw(v, "values_key"), task.length) % np.uint64(2001)).astype(np.int64) - 1000
    added = errors.copy()
    added[: values.size] += values
    product = CommonProduct(kahe.common_key(task.epoch_id), secret, profile.modulus).groups(0)[:rows]
    b = pack((product.astype(np.int64) + added.reshape(rows, -1)) % profile.modulus, task.section("sum").layout)
    assert b[:32].hex() == v["b_first"]
    assert sha(b) == v["b_sha256"]
    seeds = [words(4).tobytes() for _ in range(task.sharing.subshares)]
    assert [seed.hex() for seed in seeds] == v["seeds"]
    names = [holder.name for holder in task.config.committee.holders]
    infos = [kahe.envelope_info(task.epoch_id, v["client"], update_id, name).hex() for name in names]
    assert infos == v["envelope_info"]
    explicit = (secret % (1 << 32)).astype(np.uint32)
    for seed in seeds[:-1]:
        explicit -= np.frombuffer(expand_words(seed, profile.degree // 2).tobytes(), dtype="<u4")
    info = kahe.envelope_info(task.epoch_id, v["client"], update_id, "")
    sealed = AESGCM(seeds[-1]).encrypt(bytes(12), explicit.astype("<u4").tobytes(), info)
    assert sealed[:32].hex() == v["explicit_first"]
    assert sha(sealed) == v["explicit_sha256"]


@cases("good_kahe_openings")
def test_good_kahe_opening(v):
    """Shares and the opened sum from the updates' seeds and values alone, without any envelope."""
    updates = [u for u in load("good_kahe_updates") if json.loads(u["config"])["encryption"]["profile"] == v["profile"]]
    assert [u["client"] for u in updates] == v["updates"]
    profile, task = kahe.PROFILES[v["profile"]], kahe_task(updates[0])
    n, q, last = profile.degree, profile.modulus, task.sharing.subshares - 1
    sampler = Gaussian(profile.error_std, profile.error_tail)
    parts = [np.zeros(n, dtype=np.uint32) for _ in range(last + 1)]
    key = np.zeros(n, dtype=np.int64)
    plain = np.zeros(task.length, dtype=np.int64)
    rows = task.section("sum").layout.rows
    for u in updates:
        words = FixedWords(u["words"].encode())
        secret = sampler.sample(words(sampler.words(n)), n)
        plain += sampler.sample(words(sampler.words(rows * n)), rows * n)[: task.length]
        plain += (expand_words(*raw(u, "values_key"), task.length) % np.uint64(2001)).astype(np.int64) - 1000
        key += secret
        parts[last] += (secret % (1 << 32)).astype(np.uint32)
        for part in range(last):
            expanded = kahe.expand_subshare(bytes.fromhex(u["seeds"][part]), n)
            parts[part] += expanded
            parts[last] -= expanded
    packed = [part.astype("<u4").tobytes() for part in parts]
    assert [data[:16].hex() for data in packed] == v["shares_first"]
    assert [sha(data) for data in packed] == v["shares_sha256"]
    vectors = [unpack(data, task.scheme.share_layout(task.length)) for data in packed]
    opened_key = kahe.combined_key(profile, vectors, 2)
    np.testing.assert_array_equal(opened_key, key)
    assert key[:16].tolist() == v["key_first"]
    assert sha(key.astype("<i8").tobytes()) == v["key_sha256"]
    assert plain[:16].tolist() == v["opened_first"]
    assert sha(plain.astype("<i8").tobytes()) == v["opened_sha256"]
    assert np.abs(plain).max() < q // 2


@cases("bad_kahe_keys")
def test_bad_kahe_key(v):
    profile = kahe.PROFILES[v["profile"]]
    vectors = np.zeros((len(v["subshares"]), 1, 1, profile.degree), dtype=np.uint64)
    vectors[:, 0, 0, v["place"]] = v["subshares"]
    with refuses(v):
        kahe.combined_key(profile, list(vectors), v["count"])


@pytest.fixture(scope="module")
def kahe_14():
    return kahe_updates("kahe-14")


@cases("bad_kahe_shares")
def test_bad_kahe_shares(v, kahe_14):
    task, updates, bodies = kahe_14
    shared, index = bytearray(bodies[0]["shares"]), v.get("holder", 0)
    size = kahe.box_bytes(task.sharing)
    if "flip" in v:
        shared[v["flip"]] ^= 1
    if "box" in v:
        at = [task.scheme.explicit_bytes + i * size for i in (index, v["box"])]
        shared[at[0] : at[0] + size] = bytes(shared[at[1] : at[1] + size])
    if "epoch" in v:
        task = dataclasses.replace(task, config=replace(task.config, epoch=v["epoch"]))
    update_id = bytes.fromhex(v.get("update_id", updates[0]["update_id"]))
    parts = tuple(messages.SectionEntry(part.name, part.size, bytes(32)) for part in task.body)
    header = messages.UpdateHeader(
        task.hash, task.config.epoch, update_id, v.get("client", updates[0]["client"]), 0, 0, parts
    )
    with refuses(v):
        make_share_maker(task, index, parties.hpke_key(index), {}).begin().add(header, bytes(shared))
