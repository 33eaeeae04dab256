"""JWS: what one key signs as one kind of message is accepted as exactly that."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import (
    TOKEN_LIMIT,
    SigningKey,
    fingerprint,
    jwk_x,
    payload_hash,
    public_from_jwk,
    read_unverified,
    token_hash,
    verify,
)
from he_protocol.messages import Commitment, Reveal
from he_protocol.problems import BAD_SIGNATURE, MALFORMED, TOO_LARGE, TRAILING_BYTES, UNKNOWN_FIELD, UNKNOWN_PROTOCOL
from he_testing.problems import expect_problem

from .parties import ALICE, MALLORY

MESSAGE = Commitment(bytes(32), 1, "holder-0", b"\x01" * 32, ())
TOKEN = ALICE.sign(MESSAGE)
TYP = "hushsum-commitment+jws;v=2"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_jws(header: object, payload: bytes, key: SigningKey = ALICE) -> str:
    """A JWS made without the code under test."""
    text = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{b64(payload)}"
    return f"{text}.{b64(Ed25519PrivateKey.from_private_bytes(key.private).sign(text.encode()))}"


def payload_of(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_a_message_comes_back_as_it_was():
    assert verify(TOKEN, Commitment, ALICE.public) == MESSAGE
    assert read_unverified(TOKEN, Commitment) == MESSAGE


def test_signatures_are_deterministic_and_plain_rfc_7515():
    assert raw_jws({"alg": "Ed25519", "typ": TYP}, payload_of(TOKEN)) == TOKEN == ALICE.sign(MESSAGE)


def test_a_generated_pair_signs_and_hides_its_private_half():
    pair = SigningKey.generate()
    assert len(pair.public) == len(pair.private) == 32
    assert Ed25519PrivateKey.from_private_bytes(pair.private).public_key().public_bytes_raw() == pair.public
    assert verify(pair.sign(MESSAGE), Commitment, pair.public) == MESSAGE
    assert "private" not in repr(pair)
    assert repr(pair.private) not in repr(pair)
    assert SigningKey.generate() != pair


def test_another_key_is_refused():
    with expect_problem(BAD_SIGNATURE, "does not verify"):
        verify(TOKEN, Commitment, MALLORY.public)
    with expect_problem(BAD_SIGNATURE, "does not verify"):
        verify(MALLORY.sign(MESSAGE), Commitment, ALICE.public)


def test_a_changed_payload_is_refused():
    header, _, signature = TOKEN.split(".")
    other = b64(payload_of(TOKEN).replace(b"holder-0", b"holder-1"))
    assert read_unverified(f"{header}.{other}.{signature}", Commitment).holder == "holder-1"
    with expect_problem(BAD_SIGNATURE, "does not verify"):
        verify(f"{header}.{other}.{signature}", Commitment, ALICE.public)


def test_a_commitment_is_no_reveal_though_their_fields_agree():
    """Only `typ` tells them apart: without the check, a server replays phase 2 as phase 3."""
    assert read_unverified(TOKEN, Reveal) is not None
    with expect_problem(BAD_SIGNATURE, "not of this kind"):
        verify(TOKEN, Reveal, ALICE.public)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "Ed25519", "typ": TYP, "kid": "1"},
        {"alg": "Ed25519", "typ": TYP, "crit": ["exp"]},
        {"alg": "Ed25519", "typ": TYP, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": jwk_x(ALICE.public)}},
        {"alg": "EdDSA", "typ": TYP},
        {"alg": "Ed25519", "typ": "JWT;v=2"},
        {"alg": "Ed25519", "typ": ";v=2"},
        {"alg": "Ed25519", "typ": TYP.replace("hushsum", "HushSum")},
    ],
)
def test_any_other_header_is_refused_even_under_a_good_signature(header):
    with expect_problem(BAD_SIGNATURE, "not of this kind"):
        verify(raw_jws(header, payload_of(TOKEN)), Commitment, ALICE.public)


KIND = "hushsum-commitment+jws"
READERS = (
    lambda token: verify(token, Commitment, ALICE.public),
    lambda token: read_unverified(token, Commitment),
    payload_hash,
)


@pytest.mark.parametrize(
    "typ",
    [
        KIND,
        *(
            f"{KIND};v={version}"
            for version in ("1", "3", "20", "12", "02", "2.0", "", " 2", "2 ", "2;v=2", '"2"', "two")
        ),
        *(f"{KIND}{rest}" for rest in ("; v=2", " ;v=2;", ";V=2", ";w=1;v=2", ";v=1;v=2", ";;v=2", ",v=2", "\n;v=3")),
        "v=2",
        "JWT",
        "",
        None,
        2,
        [TYP],
        {"v": 2},
    ],
    ids=str,
)
def test_a_message_of_another_version_is_not_read(typ):
    """Signed well or not, whole or not: its fields may mean something else."""
    header = {"alg": "Ed25519", "typ": typ}
    good = raw_jws(header, payload_of(TOKEN))
    for token in (good, raw_jws(header, b"{}"), good.rsplit(".", 1)[0] + "."):
        for read in READERS:
            with expect_problem(UNKNOWN_PROTOCOL, "expected 2"):
                read(token)


def test_without_the_check_an_older_message_is_read_as_one_of_ours(monkeypatch):
    older = raw_jws({"alg": "Ed25519", "typ": KIND}, payload_of(TOKEN))
    with expect_problem(UNKNOWN_PROTOCOL):
        read_unverified(older, Commitment)
    monkeypatch.setattr("he_protocol.identity.jws._check_version", lambda typ: None)
    assert read_unverified(older, Commitment) == MESSAGE
    assert payload_hash(older) == payload_hash(TOKEN)


def test_a_message_without_a_kind_has_no_version():
    for read in READERS:
        with expect_problem(UNKNOWN_PROTOCOL):
            read(raw_jws({"alg": "Ed25519"}, payload_of(TOKEN)))


def test_a_version_of_a_strangers_choice_does_not_come_back_whole():
    token = raw_jws({"alg": "Ed25519", "typ": f"{KIND};v={'9' * 300}"}, payload_of(TOKEN))
    with pytest.raises(ProblemError) as caught:
        payload_hash(token)
    assert caught.value.problem is UNKNOWN_PROTOCOL
    assert len(caught.value.got) < 100


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_a_caller_cannot_choose_the_algorithm(alg):
    import hashlib
    import hmac

    text = f"{b64(json.dumps({'alg': alg, 'typ': TYP}).encode())}.{b64(payload_of(TOKEN))}"
    mac = "" if alg == "none" else b64(hmac.new(ALICE.public, text.encode(), hashlib.sha256).digest())
    with expect_problem(BAD_SIGNATURE):
        verify(f"{text}.{mac}", Commitment, ALICE.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: s + "A",
        lambda s: s + "=",
        lambda s: s + "==",
        lambda s: s + "\n",
        lambda s: s[:9] + "!" + s[9:],
        lambda s: s[:-1] + chr(ord(s[-1]) + 1),  # other unused bits of the last character
        lambda s: "A" * len(s),
        lambda s: "",
    ],
)
def test_a_signature_has_one_spelling(change):
    """The manifest lists hashes of whole tokens, so a second spelling would be a second update."""
    head, signature = TOKEN.rsplit(".", 1)
    with expect_problem(BAD_SIGNATURE):
        verify(f"{head}.{change(signature)}", Commitment, ALICE.public)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        TOKEN + ".",
        TOKEN.rsplit(".", 1)[0],
        " " + TOKEN,
        "\ud800",
        f"{b64(b'[]')}.e30.AA",
        f"{b64(b'1')}.e30.AA",
        f"{b64(b'{}')}.e30.AA",
        f"{b64(b'[' * 50_000)}.e30.AA",
        f"{b64(bytes([255]))}.e30.AA",
    ],
)
def test_what_is_not_a_jws_is_malformed(token):
    for read in (lambda: verify(token, Commitment, ALICE.public), lambda: read_unverified(token, Commitment)):
        with expect_problem(MALFORMED):
            read()
    with expect_problem(MALFORMED):
        payload_hash(token)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (lambda p: p[:-1] + b',"extra":1}', UNKNOWN_FIELD),
        (lambda p: p + b"{}", TRAILING_BYTES),
        (lambda p: p[:-1], MALFORMED),
        (lambda p: b"", MALFORMED),
        (lambda p: p.replace(b"holder-0", b"\xff"), MALFORMED),
    ],
)
def test_a_signed_payload_is_still_parsed_strictly(payload, problem):
    token = raw_jws({"alg": "Ed25519", "typ": TYP}, payload(payload_of(TOKEN)))
    with expect_problem(problem):
        verify(token, Commitment, ALICE.public)


def test_a_long_token_is_refused_before_it_is_parsed():
    with expect_problem(TOO_LARGE, str(TOKEN_LIMIT)):
        verify("A" * (TOKEN_LIMIT + 1), Commitment, ALICE.public)
    with expect_problem(MALFORMED):
        verify("A" * TOKEN_LIMIT, Commitment, ALICE.public)


def test_a_large_message_within_the_limit_is_signed_and_verified():
    from he_protocol.messages import Manifest, ManifestEntry

    entries = tuple(ManifestEntry(i.to_bytes(16, "big"), f"c{i}", bytes(32), 0) for i in range(25_000))
    manifest = Manifest(bytes(32), 1, 1, 1, 0, 0, entries)
    assert verify(ALICE.sign(manifest), Manifest, ALICE.public) == manifest


def test_hashes_cover_what_they_say():
    import hashlib

    assert payload_hash(TOKEN) == hashlib.sha256(payload_of(TOKEN)).digest()
    assert token_hash(TOKEN) == hashlib.sha256(TOKEN.encode()).digest()
    assert payload_hash(MALLORY.sign(MESSAGE)) == payload_hash(TOKEN)
    assert token_hash(MALLORY.sign(MESSAGE)) != token_hash(TOKEN)


def test_public_keys_as_jwk_and_fingerprint():
    assert public_from_jwk(jwk_x(ALICE.public)) == ALICE.public
    assert fingerprint(ALICE.public) != fingerprint(MALLORY.public)
    assert len(fingerprint(ALICE.public)) == 43
    for wrong in ("", jwk_x(bytes(31)), jwk_x(bytes(33)), "é" * 43, "!" * 43, "A"):
        with expect_problem(MALFORMED, "32 bytes"):
            public_from_jwk(wrong)
