"""Messages, signatures, requests, tasks and frames: good ones, and each damaged in one way."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from he_protocol import frames
from he_protocol import messages as m
from he_protocol.identity.jws import TOKEN_LIMIT, SigningKey, fingerprint, jwk_x, payload_hash, token_hash
from he_protocol.identity.requests import prove_request
from he_protocol.messages import MESSAGE_LIMIT, Message, to_json
from he_testing.plans import changed
from tests.vectors.parties import (
    AUTHORITY,
    CLIENT,
    HOLDER,
    NOW,
    SERVER,
    TASK_HASH,
    UPDATE,
    Case,
    credential,
    sha,
    stream,
    task_config,
)


def examples() -> list[tuple[Message, SigningKey]]:
    """One of every signed message, with who signs it."""
    sealed = m.SealedSeeds("holder-1", stream(sha("box"), 80))
    parts = (m.SubshareDigest(1, sha("part 1")), m.SubshareDigest(2, sha("part 2")))
    vectors = (m.ShareVector(0, 1, sha("vector 0 1")), m.ShareVector(0, 2, sha("vector 0 2")))
    excluded = (m.Exclusion(UPDATE, "digest-mismatch"),)
    failed = (m.FailedBucket(1, UPDATE, "digest-mismatch"),)
    whole = (m.SectionEntry("c0", 153600, sha("c0")), m.SectionEntry("c1", 153600, sha("c1")))
    return [
        (task_config(), AUTHORITY),
        (credential(), AUTHORITY),
        (m.EnrollRequest("phone-1", "client", CLIENT.public, NOW), CLIENT),
        (m.UpdateHeader(TASK_HASH, 1, UPDATE, "phone-1", 3, NOW, whole), CLIENT),
        (m.SignedUpdate("header.payload.signature", "a.credential.token"), CLIENT),
        (m.Manifest(TASK_HASH, 1, 4, 5, NOW, 3, (m.ManifestEntry(UPDATE, "phone-1", sha("header"), 0),)), SERVER),
        (m.Receipt(TASK_HASH, UPDATE, "phone-1", sha("header"), NOW), SERVER),
        (m.Screening(TASK_HASH, 1, 4, sha("manifest"), "holder-0", 4, 3, excluded), HOLDER),
        (m.Vote(TASK_HASH, 1, 5, sha("manifest"), "holder-0"), HOLDER),
        (m.Objection(TASK_HASH, 1, 4, sha("manifest"), "holder-0", 4, 3, "number-used", "opening 5"), HOLDER),
        (m.Share(TASK_HASH, 1, 4, sha("manifest"), "holder-0", vectors, failed), HOLDER),
        (m.Contribution(TASK_HASH, 1, "holder-0", (sealed,)), HOLDER),
        (m.Commitment(TASK_HASH, 1, "holder-0", sha("transcript"), parts), HOLDER),
        (m.Reveal(TASK_HASH, 1, "holder-0", sha("transcript"), parts), HOLDER),
        (m.Confirmation(TASK_HASH, 1, "holder-0", sha("transcript"), sha("key")), HOLDER),
        (m.RevocationList(3, NOW, NOW + 86400, tuple(sorted((sha("key 1"), sha("key 2"))))), AUTHORITY),
        (m.AuditHead("aggregator", 17, sha("entry"), NOW), SERVER),
        (m.PublishedModel(TASK_HASH, 3, sha("model")), SERVER),
        (m.RequestProof("aggregator", "PUT", "/v1/tasks", NOW, NOW + 60, "nonce", jwk_x(sha("credential"))), CLIENT),
    ]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def typ(kind: str) -> str:
    return f"hushsum-{kind.lower()}+jws;v=2"


def jws(signer: SigningKey, payload: bytes, header: dict[str, Any]) -> str:
    """RFC 7515 section 7.1 from first principles."""
    text = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{b64(payload)}"
    return f"{text}.{b64(Ed25519PrivateKey.from_private_bytes(signer.private).sign(text.encode()))}"


def signed(message: Message, signer: SigningKey, payload: bytes | None = None) -> str:
    name = type(message).__name__
    return jws(signer, to_json(message) if payload is None else payload, {"alg": "Ed25519", "typ": typ(name)})


def good_messages() -> list[Case]:
    cases = []
    for message, signer in examples():
        token = signed(message, signer)
        cases.append(
            {
                "type": type(message).__name__,
                "private": signer.private.hex(),
                "public": signer.public.hex(),
                "payload": to_json(message).decode(),
                "token": token,
                "payload_hash": payload_hash(token).hex(),
                "token_hash": token_hash(token).hex(),
            }
        )
    return cases


FIXED = {"task_hash", "sha256", "header", "manifest", "transcript", "fingerprint", "update_id", "key", "hash"}
"""Fields with bytes of a fixed size."""
WHOLE = {
    "epoch",
    "base_version",
    "created",
    "round",
    "model_version",
    "version",
    "received",
    "iat",
    "exp",
    "min_clients",
}
NAMES = {"client", "holder", "name", "sub", "aud"}


def damaged(body: dict[str, Any], kind: str) -> list[tuple[str, bytes, str]]:
    """Every systematic damage to one message: what was done, the payload, the problem."""
    text = json.dumps(body, separators=(",", ":"))
    first = next(iter(body))
    found = [
        ("an unknown field", json.dumps({**body, "extra": 1}), "unknown-field"),
        ("a second object behind it", text + "{}", "trailing-bytes"),
        ("the last byte missing", text[:-1], "malformed"),
        ("an array around it", f"[{text}]", "malformed"),
        (f"no {first}", json.dumps({k: v for k, v in body.items() if k != first}), "malformed"),
        (
            f"{first} of another type",
            json.dumps({**body, first: 7 if isinstance(body[first], str) else "7"}),
            "malformed",
        ),
    ]
    found += [(what, json.dumps(other), problem) for what, other, problem in altered(body, kind)]
    return [(what, payload.encode(), problem) for what, payload, problem in found]


def altered(body: dict[str, Any], kind: str) -> list[tuple[str, dict[str, Any], str]]:
    """Damage to single fields of a message, and of the tables in it."""
    found: list[tuple[str, dict[str, Any], str]] = []
    for field, value in body.items():
        wrong: list[tuple[str, Any, str]] = []
        if field in FIXED and kind != "SignedUpdate":
            raw = base64.b64decode(value)
            wrong += [
                (f"{field} one byte short", base64.b64encode(raw[:-1]).decode(), "malformed"),
                (f"{field} one byte long", base64.b64encode(raw + b"x").decode(), "malformed"),
                (f"{field} not base64", "*" * len(value), "malformed"),
            ]
        if field in WHOLE:
            wrong += [(f"{field} {number!r}", number, "malformed") for number in (-1, 2**53 + 1, 1.5, "1", None)]
        if field in NAMES:
            names = ("", "Phone", "a b", "../a", "a\n", "a" * 65)
            wrong += [(f"{field} {name!r}", name, "malformed") for name in names]
        if field == "role":
            wrong.append(("role 'admin'", "admin", "malformed"))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = [{**value[0], "extra": 1}, *value[1:]]
            wrong.append((f"an unknown field in {field}", inner, "unknown-field"))
        if isinstance(value, dict):
            wrong.append((f"an unknown field in {field}", {**value, "extra": 1}, "unknown-field"))
            wrong += altered(value, kind)
        found += [(what, {**body, field: instead}, problem) for what, instead, problem in wrong]
    return found


def bad_messages() -> list[Case]:
    """Correctly signed, so that only the strict parser stands in the way."""
    cases = []
    for message, signer in examples():
        kind = type(message).__name__
        for what, payload, problem in damaged(json.loads(to_json(message)), kind):
            if (
                kind == "TaskConfig"
                and len(payload) > 4000
                and what.split()[0] not in {"an", "a", "the", "fingerprint", "epoch"}
            ):
                continue  # keeps the file small
            cases.append({"case": f"{kind}: {what}", "type": kind, "public": signer.public.hex(),
                          "token": signed(message, signer, payload), "problem": problem})  # fmt: skip
    receipt, signer = examples()[6]
    not_utf8 = to_json(receipt).replace(b"phone-1", b"\xff")
    cases.append({"case": "Receipt: not UTF-8", "type": "Receipt", "public": signer.public.hex(),
                  "token": signed(receipt, signer, not_utf8), "problem": "malformed"})  # fmt: skip
    return cases


def bad_signatures() -> list[Case]:
    commitment, signer = next(e for e in examples() if isinstance(e[0], m.Commitment))
    payload, token = to_json(commitment), signed(commitment, signer)
    good = {"alg": "Ed25519", "typ": typ("Commitment")}
    head, body, signature = token.split(".")
    unsigned = f"{b64(json.dumps({'alg': 'none', 'typ': typ('Commitment')}).encode())}.{body}."
    cases: list[tuple[str, Any, str]] = [
        (
            "typ of a Reveal, which has the same fields",
            jws(signer, payload, {**good, "typ": typ("Reveal")}),
            "bad-signature",
        ),
        ("typ JWT of this version", jws(signer, payload, {**good, "typ": "JWT;v=2"}), "bad-signature"),
        ("alg none", unsigned, "bad-signature"),
        ("alg EdDSA", jws(signer, payload, {**good, "alg": "EdDSA"}), "bad-signature"),
        ("alg HS256", jws(signer, payload, {**good, "alg": "HS256"}), "bad-signature"),
        ("an extra header member", jws(signer, payload, {**good, "kid": "1"}), "bad-signature"),
        ("the key in the header", jws(CLIENT, payload, {**good, "jwk": {"x": jwk_x(CLIENT.public)}}), "bad-signature"),
        ("critical extension", jws(signer, payload, {**good, "crit": ["exp"]}), "bad-signature"),
        ("signed by somebody else", signed(commitment, CLIENT), "bad-signature"),
        ("a changed payload", f"{head}.{b64(payload.replace(b'holder-0', b'holder-1'))}.{signature}", "bad-signature"),
        ("a changed signature", f"{head}.{body}.{b64(bytes(64))}", "bad-signature"),
        ("a short signature", f"{head}.{body}.{signature[:-2]}", "bad-signature"),
        ("a padded signature", f"{token}==", "bad-signature"),
        ("other unused bits in the signature", token[:-1] + chr(ord(token[-1]) + 1), "bad-signature"),
        ("no signature", f"{head}.{body}", "malformed"),
        ("a fourth segment", f"{token}.e30", "malformed"),
        ("a header that is no object", f"{b64(b'[]')}.{body}.{signature}", "malformed"),
        ("a header that is no JSON", f"{b64(b'{')}.{body}.{signature}", "malformed"),
        ("a payload that is no base64", f"{head}.*.{signature}", "malformed"),
        ("nothing", "", "malformed"),
        ("too long", {"repeat": "A", "times": TOKEN_LIMIT + 1}, "too-large"),
    ]
    return [
        {"case": what, "type": "Commitment", "public": signer.public.hex(), "token": text, "problem": problem}
        for what, text, problem in cases
    ]


SPELLINGS = ("", ";v=1", ";v=3", ";v=02", ";v=2.0", ";v=", ";V=2", "; v=2", ";v=2 ", ";v=2;v=2", ";w=1;v=2", ",v=2")
"""What may stand in the place of `;v=2` and is not this version."""


def bad_versions() -> list[Case]:
    """Correctly signed messages of other versions: none of them is read, whoever asks."""
    cases = []
    for message, signer in examples():
        kind = type(message).__name__
        bare = typ(kind).removesuffix(";v=2")
        spellings = SPELLINGS if kind == "Commitment" else ("", ";v=1", ";v=3")
        made: list[tuple[str, Any]] = [(f"typ {bare + spelling!r}", bare + spelling) for spelling in spellings]
        if kind == "Commitment":
            made += [("typ JWT", "JWT"), ("typ that is a list", [typ(kind)]), ("no typ", None)]
        for what, value in made:
            header = {"alg": "Ed25519"} | ({} if value is None else {"typ": value})
            token = jws(signer, to_json(message), header)
            cases.append({"case": f"{kind}: {what}", "type": kind, "public": signer.public.hex(), "token": token,
                          "problem": "unknown-protocol"})  # fmt: skip
    return cases


def bad_tasks() -> list[Case]:
    """Well-formed and signed by the authority, but not to be run."""
    config = task_config()
    first, second, third = config.committee.holders
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("unknown scheme", {"scheme": "rot13"}, "wrong-scheme"),
        ("unknown profile", {"profile": "ckks-1"}, "wrong-scheme"),
        ("other parameters", {"fingerprint": bytes(32)}, "fingerprint-mismatch"),
        ("one colluding holder is too many", {"threshold": 1}, "bad-committee"),
        ("more than all holders", {"threshold": 4}, "bad-committee"),
        ("two sets of voters need not meet", {"threshold": 1, "agreement": 1}, "bad-committee"),
        ("one holder key twice", {"holders": (first, replace(second, key=first.key), third)}, "bad-plan"),
        ("one tensor name twice", {"tensors": config.model.tensors[:1] * 2}, "bad-plan"),
        ("min above max", {"min_clients": 101}, "bad-plan"),
        ("buckets that cannot be filled", {"buckets": 34}, "bad-plan"),
        ("buckets whose share has no room", {"buckets": 513, "min_clients": 2, "max_clients": 2000}, "bad-plan"),
        ("a median of two", {"buckets": 2, "combination": "median"}, "bad-plan"),
        ("nobody honest", {"min_clients": 1}, "bad-plan"),
        ("no delta", {"privacy": replace(config.privacy, delta=0.0)}, "bad-plan"),
        ("amplification at client level", {"privacy": replace(config.privacy, sampling_rate=0.5)}, "bad-plan"),
        ("sums wrap", {"scale": 2.0**31}, "sum-could-wrap"),
        ("too many openings", {"max_openings": 2**40}, "bad-plan"),
    ]
    return [
        {
            "case": what,
            "authority": AUTHORITY.public.hex(),
            "token": AUTHORITY.sign(changed(config, **change)),
            "problem": problem,
        }
        for what, change, problem in changes
    ]


def good_frames() -> list[Case]:
    head = to_json(m.SignedUpdate("h", "c"))
    return [
        {"frame": (frames.start(h) + body).hex(), "head": h.hex(), "body": body.hex()}
        for h, body in ((head, b"body"), (head, b""), (b"", b"\0"))
    ]


def bad_frames() -> list[Case]:
    magic, head = b"HSF\x02", struct.pack("<I", 5) + b"hello"
    cases = [
        ("nothing", b"", "malformed"),
        ("half a magic", magic[:3], "malformed"),
        ("half a length", (magic + head)[:7], "malformed"),
        ("half a head", (magic + head)[:-1], "malformed"),
        ("a big-endian length", magic + struct.pack(">I", 5) + b"hello", "too-large"),
        ("a head over the limit", magic + struct.pack("<I", frames.HEAD_LIMIT + 1), "too-large"),
        ("no version, as before there were any", head, "unknown-protocol"),
        ("an older version", b"HSF\x01" + head, "unknown-protocol"),
        ("a newer version", b"HSF\x03" + head, "unknown-protocol"),
        ("the version as text", b"HSF2" + head, "unknown-protocol"),
        ("another magic", b"hsf\x02" + head, "unknown-protocol"),
        ("a newer version with a length over the limit", b"HSF\x03" + b"\xff" * 4, "unknown-protocol"),
    ]
    return [{"case": what, "frame": frame.hex(), "problem": problem} for what, frame, problem in cases]


REQUEST = {"audience": "aggregator", "method": "PUT", "path": "/v1/tasks"}


def good_requests() -> list[Case]:
    token = signed(credential(), AUTHORITY)
    headers = prove_request(CLIENT, token, **REQUEST, now=NOW, jti="nonce-1")
    return [
        {
            "authority": AUTHORITY.public.hex(),
            "private": CLIENT.private.hex(),
            **REQUEST,
            "now": NOW,
            "jti": "nonce-1",
            "credential": token,
            "authorization": headers["Authorization"],
            "dpop": headers["DPoP"],
            "name": "phone-1",
            "role": "client",
        }
    ]


def bad_requests() -> list[Case]:
    [good] = good_requests()
    made = credential()
    foreign = signed(
        m.Credential(fingerprint(SERVER.public), made.sub, made.role, made.iat, made.exp, made.cnf), SERVER
    )
    forged = signed(made, CLIENT)
    again = signed(m.Credential(made.iss, made.sub, made.role, made.iat, made.exp + 1, made.cnf), AUTHORITY)
    stolen = prove_request(SERVER, good["credential"], **REQUEST, now=NOW, jti="nonce-1")["DPoP"]
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("another method", {"method": "GET"}, "unauthenticated"),
        ("another path", {"path": "/v1/tasks/x"}, "unauthenticated"),
        ("another server", {"audience": "other"}, "unauthenticated"),
        ("too late", {"now": NOW + 60}, "unauthenticated"),
        ("credential expired", {"now": NOW + 86400}, "expired-credential"),
        ("credential not yet valid", {"now": NOW - 31}, "expired-credential"),
        ("no proof", {"dpop": ""}, "unauthenticated"),
        ("bearer scheme", {"authorization": f"Bearer {good['credential']}"}, "unauthenticated"),
        ("a stolen credential", {"dpop": stolen}, "bad-signature"),
        ("a credential signed by its owner", {"authorization": f"DPoP {forged}"}, "bad-signature"),
        ("another authority's credential", {"authorization": f"DPoP {foreign}"}, "foreign-credential"),
        ("a proof for another credential", {"authorization": f"DPoP {again}"}, "bad-signature"),
        ("a credential for a proof", {"dpop": good["credential"]}, "bad-signature"),
    ]
    return [{"case": what, **good, **change, "problem": problem} for what, change, problem in changes]


def bad_sizes() -> list[Case]:
    return [
        {
            "case": "one byte over the limit",
            "type": "Receipt",
            "data": {"repeat": " ", "times": MESSAGE_LIMIT + 1},
            "problem": "too-large",
        },
        {"case": "empty", "type": "Receipt", "data": {"repeat": " ", "times": 0}, "problem": "malformed"},
    ]
