"""Writes the known-answer files next to it: `python -m tests.vectors.make`.

Deterministic: keys come from fixed bytes, Ed25519 signatures are deterministic (RFC 8032), and JWS
are put together here with `cryptography` alone, so that they also check the library in use.
`good_*.json` holds what every implementation must accept with exactly this result, `bad_*.json`
what it must refuse with exactly this problem. Bytes are hex unless a JSON message carries them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from he_client.schemes.kahe import KaheSealer
from he_protocol import framing
from he_protocol import messages as m
from he_protocol.gaussian import Gaussian
from he_protocol.identity import prove_request
from he_protocol.keystream import derive_key, expand_words
from he_protocol.lanes import CommonProduct
from he_protocol.messages import MESSAGE_LIMIT, Message, encode
from he_protocol.privacy import PrivacyPlan
from he_protocol.quantise import quantise
from he_protocol.residues import ResidueLayout, fold, pack, unpack
from he_protocol.schemes import combine, load_scheme
from he_protocol.schemes.ckks import PROFILES, common_polynomial
from he_protocol.schemes.kahe import PROFILES as KAHE
from he_protocol.schemes.kahe import KaheProfile, common_key, envelope_info, opened_key
from he_protocol.sharing import Sharing
from he_protocol.signing import TOKEN_LIMIT, SigningKey, fingerprint, jwk_x, payload_hash, token_hash
from he_protocol.task import HolderEntry, ServerEntry, Task, TaskConfig, TensorSpec
from keys.hpke_key import HpkeKey
from keys.schemes import make_opener
from tests.support.kahe import FixedWords

HERE = Path(__file__).parent
NOW = 1_800_000_000
Case = dict[str, Any]


def key(number: int) -> SigningKey:
    private = bytes([number]) * 32
    return SigningKey(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(), private)


AUTHORITY, SERVER, CLIENT, HOLDER = (key(n) for n in range(1, 5))
TASK_HASH = hashlib.sha256(b"a task").digest()
EPOCH_ID = TASK_HASH + (1).to_bytes(8, "little")
UPDATE = bytes(range(16))


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def stream(key: bytes, size: int, block: int = 0) -> bytes:
    """`size` bytes of the keystream, a multiple of 8."""
    return expand_words(key, size // 8, block=block).tobytes()


def credential() -> m.Credential:
    return m.Credential(
        fingerprint(AUTHORITY.public), "phone-1", "client", NOW, NOW + 86400, m.Cnf(m.Jwk(jwk_x(CLIENT.public)))
    )


def task_config() -> TaskConfig:
    return TaskConfig(
        name="har",
        scheme="ckks",
        profile="ckks-8192",
        fingerprint=load_scheme("ckks", "ckks-8192").profile.fingerprint,
        epoch=1,
        tensors=(TensorSpec("fc.weight", (12, 64)), TensorSpec("fc.bias", (12,))),
        scale=2.0**20,
        value_range=1.0,
        privacy=PrivacyPlan("client", 1.0, 1.0, 1.0, 1e-5, 8.0, 1),
        min_clients=3,
        max_clients=100,
        collect_seconds=600,
        opening_seconds=60,
        staleness=2,
        max_openings=50,
        server=ServerEntry("aggregator", SERVER.public),
        holders=tuple(HolderEntry(f"holder-{n}", key(10 + n).public, stream(sha(f"hpke {n}"), 1216)) for n in range(3)),
        threshold=2,
    )


def examples() -> list[tuple[Message, SigningKey]]:
    """One of every signed message, with who signs it."""
    sealed = m.SealedSeeds("holder-1", stream(sha("box"), 80))
    parts = (m.PartDigest(1, sha("part 1")), m.PartDigest(2, sha("part 2")))
    vectors = (m.ShareVector(0, 1, sha("vector 0 1")), m.ShareVector(0, 2, sha("vector 0 2")))
    failed = (m.FailedBucket(1, UPDATE, "digest-mismatch"),)
    whole = (m.Part("c0", 153600, sha("c0")), m.Part("c1", 153600, sha("c1")))
    return [
        (task_config(), AUTHORITY),
        (credential(), AUTHORITY),
        (m.EnrolRequest("phone-1", "client", CLIENT.public, NOW), CLIENT),
        (m.UpdateHeader(TASK_HASH, 1, UPDATE, "phone-1", 3, NOW, whole), CLIENT),
        (m.SignedUpdate("header.payload.signature", "a.credential.token"), CLIENT),
        (m.Manifest(TASK_HASH, 1, 4, 3, (m.ManifestEntry(UPDATE, "phone-1", sha("header"), 0),)), SERVER),
        (m.Receipt(TASK_HASH, UPDATE, "phone-1", sha("header"), NOW), SERVER),
        (m.Share(TASK_HASH, 1, 4, sha("manifest"), "holder-0", vectors, failed), HOLDER),
        (m.Contribution(TASK_HASH, 1, "holder-0", (sealed,)), HOLDER),
        (m.Commitment(TASK_HASH, 1, "holder-0", sha("transcript"), parts), HOLDER),
        (m.Reveal(TASK_HASH, 1, "holder-0", sha("transcript"), parts), HOLDER),
        (m.Confirmation(TASK_HASH, 1, "holder-0", sha("transcript"), sha("key")), HOLDER),
        (m.RevocationList(3, NOW, NOW + 86400, tuple(sorted((sha("key 1"), sha("key 2"))))), AUTHORITY),
        (m.AuditHead("aggregator", 17, sha("entry"), NOW), SERVER),
        (m.RequestProof("aggregator", "PUT", "/v1/tasks", NOW, NOW + 60, "nonce", jwk_x(sha("credential"))), CLIENT),
    ]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def typ(kind: str) -> str:
    return f"hushsum-{kind.lower()}+jws"


def jws(signer: SigningKey, payload: bytes, header: dict[str, Any]) -> str:
    """RFC 7515 section 7.1 from first principles."""
    text = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{b64(payload)}"
    return f"{text}.{b64(Ed25519PrivateKey.from_private_bytes(signer.private).sign(text.encode()))}"


def signed(message: Message, signer: SigningKey, payload: bytes | None = None) -> str:
    name = type(message).__name__
    return jws(signer, encode(message) if payload is None else payload, {"alg": "Ed25519", "typ": typ(name)})


def good_messages() -> list[Case]:
    cases = []
    for message, signer in examples():
        token = signed(message, signer)
        cases.append(
            {
                "type": type(message).__name__,
                "private": signer.private.hex(),
                "public": signer.public.hex(),
                "payload": encode(message).decode(),
                "token": token,
                "payload_hash": payload_hash(token).hex(),
                "token_hash": token_hash(token).hex(),
            }
        )
    return cases


FIXED = {"task_hash", "sha256", "header", "manifest", "transcript", "fingerprint", "update_id", "key", "hash"}
"""Fields with bytes of a fixed size."""
WHOLE = {"epoch", "base_version", "created", "round", "model_version", "received", "iat", "exp", "min_clients"}
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
    for field, value in body.items():
        if field in FIXED and kind != "SignedUpdate":
            raw = base64.b64decode(value)
            found += [
                (
                    f"{field} one byte short",
                    json.dumps({**body, field: base64.b64encode(raw[:-1]).decode()}),
                    "malformed",
                ),
                (
                    f"{field} one byte long",
                    json.dumps({**body, field: base64.b64encode(raw + b"x").decode()}),
                    "malformed",
                ),
                (f"{field} not base64", json.dumps({**body, field: "*" * len(value)}), "malformed"),
            ]
        if field in WHOLE:
            found += [
                (f"{field} {wrong!r}", json.dumps({**body, field: wrong}), "malformed")
                for wrong in (-1, 2**53 + 1, 1.5, "1", None)
            ]
        if field in NAMES:
            found += [
                (f"{field} {wrong!r}", json.dumps({**body, field: wrong}), "malformed")
                for wrong in ("", "Phone", "a b", "../a", "a\n", "a" * 65)
            ]
        if field == "role":
            found.append(("role 'admin'", json.dumps({**body, field: "admin"}), "malformed"))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = [{**value[0], "extra": 1}, *value[1:]]
            found.append((f"an unknown field in {field}", json.dumps({**body, field: inner}), "unknown-field"))
    return [(what, payload.encode(), problem) for what, payload, problem in found]


def bad_messages() -> list[Case]:
    """Correctly signed, so that only the strict parser stands in the way."""
    cases = []
    for message, signer in examples():
        kind = type(message).__name__
        for what, payload, problem in damaged(json.loads(encode(message)), kind):
            if (
                kind == "TaskConfig"
                and len(payload) > 4000
                and what.split()[0] not in {"an", "a", "the", "fingerprint", "epoch"}
            ):
                continue  # keeps the file small
            cases.append({"case": f"{kind}: {what}", "type": kind, "public": signer.public.hex(),
                          "token": signed(message, signer, payload), "problem": problem})  # fmt: skip
    receipt, signer = examples()[6]
    not_utf8 = encode(receipt).replace(b"phone-1", b"\xff")
    cases.append({"case": "Receipt: not UTF-8", "type": "Receipt", "public": signer.public.hex(),
                  "token": signed(receipt, signer, not_utf8), "problem": "malformed"})  # fmt: skip
    return cases


def bad_signatures() -> list[Case]:
    commitment, signer = next(e for e in examples() if isinstance(e[0], m.Commitment))
    payload, token = encode(commitment), signed(commitment, signer)
    good = {"alg": "Ed25519", "typ": typ("Commitment")}
    head, body, signature = token.split(".")
    unsigned = f"{b64(json.dumps({'alg': 'none', 'typ': typ('Commitment')}).encode())}.{body}."
    cases: list[tuple[str, Any, str]] = [
        (
            "typ of a Reveal, which has the same fields",
            jws(signer, payload, {**good, "typ": typ("Reveal")}),
            "bad-signature",
        ),
        ("typ JWT", jws(signer, payload, {**good, "typ": "JWT"}), "bad-signature"),
        ("no typ", jws(signer, payload, {"alg": "Ed25519"}), "bad-signature"),
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


def bad_tasks() -> list[Case]:
    """Well-formed and signed by the authority, but not to be run."""
    body = json.loads(encode(task_config()))
    twice = [body["holders"][0], {**body["holders"][1], "key": body["holders"][0]["key"]}, body["holders"][2]]
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("unknown scheme", {"scheme": "rot13"}, "wrong-scheme"),
        ("unknown profile", {"profile": "ckks-1"}, "wrong-scheme"),
        ("other parameters", {"fingerprint": base64.b64encode(bytes(32)).decode()}, "fingerprint-mismatch"),
        ("two quorums need not meet", {"threshold": 1}, "bad-committee"),
        ("more than all holders", {"threshold": 4}, "bad-committee"),
        ("one holder key twice", {"holders": twice}, "bad-plan"),
        ("one tensor name twice", {"tensors": [body["tensors"][0]] * 2}, "bad-plan"),
        ("min above max", {"min_clients": 101}, "bad-plan"),
        ("buckets that cannot be filled", {"buckets": 34}, "bad-plan"),
        ("buckets whose share has no room", {"buckets": 513, "min_clients": 2, "max_clients": 2000}, "bad-plan"),
        ("a median of two", {"buckets": 2, "combination": "median"}, "bad-plan"),
        ("nobody honest", {"min_clients": 1}, "bad-plan"),
        ("no delta", {"privacy": {**body["privacy"], "delta": 0.0}}, "bad-plan"),
        ("amplification at client level", {"privacy": {**body["privacy"], "sampling_rate": 0.5}}, "bad-plan"),
        ("sums wrap", {"scale": 2.0**31}, "sum-could-wrap"),
        ("too many openings", {"max_openings": 2**40}, "bad-plan"),
    ]
    return [
        {
            "case": what,
            "authority": AUTHORITY.public.hex(),
            "token": jws(
                AUTHORITY, json.dumps({**body, **change}).encode(), {"alg": "Ed25519", "typ": typ("TaskConfig")}
            ),
            "problem": problem,
        }
        for what, change, problem in changes
    ]


def good_frames() -> list[Case]:
    head = encode(m.SignedUpdate("h", "c"))
    return [
        {"frame": (framing.start(h) + body).hex(), "head": h.hex(), "body": body.hex()}
        for h, body in ((head, b"body"), (head, b""), (b"", b"\0"))
    ]


def bad_frames() -> list[Case]:
    head = struct.pack("<I", 5) + b"hello"
    return [
        {"case": "nothing", "frame": "", "problem": "malformed"},
        {"case": "half a length", "frame": head[:3].hex(), "problem": "malformed"},
        {"case": "half a head", "frame": head[:-1].hex(), "problem": "malformed"},
        {"case": "a big-endian length", "frame": (struct.pack(">I", 5) + b"hello").hex(), "problem": "too-large"},
        {
            "case": "a head over the limit",
            "frame": struct.pack("<I", framing.HEAD_LIMIT + 1).hex(),
            "problem": "too-large",
        },
    ]


LAYOUT = ResidueLayout(1, (97, 113), 64, 7)
DESCRIBED = {"polynomials": 1, "moduli": [97, 113], "degree": 64, "bits": 7}


def good_residues() -> list[Case]:
    cases = []
    shapes = [DESCRIBED]
    shapes.append({"polynomials": 1, "moduli": list(PROFILES["ckks-8192"].data_moduli), "degree": 64, "bits": 50})
    shapes += [{"polynomials": 2, "moduli": [p.modulus], "degree": 64, "bits": p.bits} for p in KAHE.values()]
    shapes.append({"polynomials": 1, "moduli": [1 << 32], "degree": 64, "bits": 32})
    for described in shapes:
        layout = layout_of(described)
        moduli = np.array(layout.moduli, dtype=np.uint64)[None, :, None]
        values = expand_words(sha("residues"), layout.rows * 64).reshape(layout.shape) % moduli
        for array in (values, np.broadcast_to(moduli - np.uint64(1), layout.shape)):
            cases.append({"layout": described, "residues": array.tolist(), "packed": pack(array, layout).hex()})
    return cases


def layout_of(described: dict[str, Any]) -> ResidueLayout:
    return ResidueLayout(described["polynomials"], tuple(described["moduli"]), described["degree"], described["bits"])


def bad_residues() -> list[Case]:
    def packed(place: int, value: int) -> str:
        values = np.zeros(128, dtype=np.uint64)
        values[place] = value
        return pack(values, LAYOUT).hex()

    whole = packed(0, 0)
    rows = [
        ("the first at its modulus", packed(0, 97), "residue-out-of-range"),
        ("the last of its row at its modulus", packed(63, 97), "residue-out-of-range"),
        ("the second row's at its own modulus", packed(64, 113), "residue-out-of-range"),
        ("all ones", "ff" * 112, "residue-out-of-range"),
        ("a byte short", whole[:-2], "wrong-size"),
        ("a byte long", whole + "00", "wrong-size"),
    ]
    return [{"case": what, "layout": DESCRIBED, "packed": text, "problem": problem} for what, text, problem in rows]


def bad_layouts() -> list[Case]:
    changes = [
        ("a degree that is no multiple of 64", {"degree": 32}),
        ("a modulus that does not fit", {"moduli": [97, 129]}),
        ("no bits", {"bits": 0, "moduli": [1]}),
        ("too many bits", {"bits": 63}),
    ]
    return [{"case": what, "layout": DESCRIBED | change} for what, change in changes]


def good_sharing() -> list[Case]:
    return [
        {
            "holders": n,
            "threshold": t,
            "excluded": [list(part) for part in Sharing(n, t).excluded],
            "parts_of": [list(Sharing(n, t).parts_of(h)) for h in range(n)],
        }
        for n, t in ((1, 1), (2, 2), (3, 2), (3, 3), (5, 3), (7, 4))
    ]


def bad_sharing() -> list[Case]:
    return [
        {"case": f"{t} of {n}", "holders": n, "threshold": t, "problem": "bad-committee"}
        for n, t in ((3, 0), (3, 4), (2, 1), (4, 2), (10, 6))
    ]


def good_keystream() -> list[Case]:
    return [
        {
            "key": k.hex(),
            "block": block,
            "stream": stream(k, 40, block).hex(),
            "words": expand_words(k, 3, block=block).tolist(),
        }
        for k in (bytes(32), sha("stream"))
        for block in (0, 1, 2**32, 2**64 - 1)
    ]


def good_derived_keys() -> list[Case]:
    return [
        {"domain": domain, "fields": [f.hex() for f in fields], "key": derive_key(domain, *fields).hex()}
        for domain, fields in (
            ("d", ()),
            ("d", (b"",)),
            ("hushsum/test/v1", (b"ab", b"c")),
            ("hushsum/test/v1", (b"a", b"bc")),
        )
    ]


def good_gaussian() -> list[Case]:
    cases = []
    for std in (0.5, 3.2, 6.4, 96.0, 137.0, 1000.0, 1e6):
        sampler = Gaussian(std)
        words = expand_words(sha("gaussian"), sampler.words(64))
        cases.append(
            {
                "std": std,
                "factors": list(sampler.factors),
                "key": sha("gaussian").hex(),
                "words": words.size,
                "samples": sampler.sample(words, 64).tolist(),
            }
        )
    return cases


def good_quantise() -> list[Case]:
    values = [0.0, 1.0, -1.0, 0.3, -0.3, 0.5, -0.5, 5.0, -5.0, 1e-9, 0.999, -0.999]
    words = expand_words(sha("quantise"), len(values) // 2).view("<u4")
    return [
        {
            "scale": scale,
            "value_range": bound,
            "key": sha("quantise").hex(),
            "values": values,
            "integers": quantise(np.array(values, dtype=np.float32), scale, bound, words).tolist(),
        }
        for scale, bound in ((1.0, 1.0), (10.0, 0.75), (2.0**20, 2.0))
    ]


def good_profiles() -> list[Case]:
    """Every profile's fingerprint; for `ckks` also the common polynomial."""
    cases = [
        {"scheme": profile.scheme, "profile": name, "fingerprint": profile.fingerprint.hex()}
        for name, profile in (PROFILES | KAHE).items()
    ]
    for case, profile in zip(cases, PROFILES.values(), strict=False):
        a = common_polynomial(profile, EPOCH_ID)
        case |= {
            "epoch_id": EPOCH_ID.hex(),
            "common_polynomial_sha256": hashlib.sha256(a.astype("<u8").tobytes()).hexdigest(),
            "first_residues": a[0, :, :4].tolist(),
        }
    return cases


def kahe_key(profile: KaheProfile, name: str) -> np.ndarray:
    """A one-time key: the profile's Gaussian from the keystream of SHA-256(name)."""
    sampler = Gaussian(profile.error_std, profile.error_tail)
    return sampler.sample(expand_words(sha(name), sampler.words(profile.degree)), profile.degree)


def good_kahe_products() -> list[Case]:
    """a_j * s for a fixed s: 16 polynomials of two groups, as little-endian uint32 row by row."""
    cases = []
    for name, profile in KAHE.items():
        secret = kahe_key(profile, "secret")
        product = CommonProduct(common_key(EPOCH_ID), secret, profile.modulus)
        for number in (0, 3):
            rows = product.group(number)
            cases.append(
                {
                    "profile": name,
                    "epoch_id": EPOCH_ID.hex(),
                    "common_key": common_key(EPOCH_ID).hex(),
                    "secret_key": sha("secret").hex(),
                    "secret_first": secret[:8].tolist(),
                    "group": number,
                    "first_of_each": rows[:, :4].tolist(),
                    "sha256": hashlib.sha256(rows.astype("<u4").tobytes()).hexdigest(),
                }
            )
    return cases


def kahe_config(profile: str) -> TaskConfig:
    """The task above under `kahe`, with holders whose HPKE keys exist."""
    config = task_config()
    holders = [replace(h, hpke=hpke_key(n).public) for n, h in enumerate(config.holders)]
    return replace(
        config, scheme="kahe", profile=profile, fingerprint=KAHE[profile].fingerprint, scale=16.0, max_clients=3,
        privacy=PrivacyPlan("none"), holders=tuple(holders),
    )  # fmt: skip


def hpke_key(number: int) -> HpkeKey:
    return HpkeKey(stream(sha(f"hpke private {number}"), 96))


def kahe_updates(profile: str) -> tuple[Task, list[Case], list[dict[str, bytes]]]:
    """Two clients' updates under `FixedWords`; envelopes are randomised by HPKE, so seeds stand for them."""
    config = kahe_config(profile)
    task = Task(config, "", hashlib.sha256(encode(config)).digest())
    cases, bodies = [], []
    for client in ("phone-1", "phone-2"):
        words, update_id = FixedWords(client.encode()), sha(client)[:16]
        values = (expand_words(sha(f"values {client}"), task.length) % np.uint64(2001)).astype(np.int64) - 1000
        body = {part.name: b"" for part in task.body}

        def write(part: str, data: bytes, body: dict[str, bytes] = body) -> None:
            body[part] += data

        def source(start: int, stop: int, values: np.ndarray = values) -> np.ndarray:
            return values[start:stop]

        KaheSealer(task, client, threads=1, words=words)._seal(update_id, source, write)
        bodies.append(body)
        explicit = body["shares"][: task.scheme.explicit_bytes]  # type: ignore[attr-defined]
        cases.append(
            {
                "config": encode(config).decode(),
                "epoch_id": task.epoch_id.hex(),
                "client": client,
                "update_id": update_id.hex(),
                "words": client,
                "values_key": sha(f"values {client}").hex(),
                "seeds": [seed.hex() for seed in words.seeds(task.sharing.parts)],
                "envelope_info": [
                    envelope_info(task.epoch_id, client, update_id, holder.name).hex() for holder in config.holders
                ],
                "sizes": {part.name: part.size for part in task.body},
                "b_first": body["b"][:32].hex(),
                "b_sha256": hashlib.sha256(body["b"]).hexdigest(),
                "explicit_first": explicit[:32].hex(),
                "explicit_sha256": hashlib.sha256(explicit).hexdigest(),
            }
        )
    return task, cases, bodies


def good_kahe_updates() -> list[Case]:
    return [case for profile in KAHE for case in kahe_updates(profile)[1]]


def good_kahe_openings() -> list[Case]:
    """The sum of the updates above: what holders release for it, the key, and the opened integers."""
    cases = []
    for profile in KAHE:
        task, _, bodies = kahe_updates(profile)
        layout, shares = task.part("sum").layout, task.scheme.share_layout(task.length)
        assert layout is not None
        total = layout.zeros()
        for body in bodies:
            fold(total.reshape(layout.rows, layout.degree), body["b"], layout)
        folded = hashlib.sha256(pack(total, layout)).hexdigest()
        released: dict[int, bytes] = {}
        for index in (0, 1):
            opening = make_opener(task, index, hpke_key(index), {}).begin()
            for client, body in zip(("phone-1", "phone-2"), bodies, strict=True):
                parts = tuple(m.Part(part.name, part.size, sha(part.name)) for part in task.body)
                opening.add(m.UpdateHeader(task.hash, 1, sha(client)[:16], client, 0, NOW, parts), body["shares"])
            released |= dict(opening.release(bytes(32), 0))
        vectors = [unpack(released[part], shares) for part in range(task.sharing.parts)]
        key = opened_key(KAHE[profile], vectors, 2)
        opened = combine(task.scheme, total, vectors, task.length, 2, task.epoch_id)
        cases.append(
            {
                "profile": profile,
                "updates": ["phone-1", "phone-2"],
                "b_sum_sha256": folded,
                "shares_first": [released[part][:16].hex() for part in range(task.sharing.parts)],
                "shares_sha256": [hashlib.sha256(released[part]).hexdigest() for part in range(task.sharing.parts)],
                "key_first": key[:16].tolist(),
                "key_sha256": hashlib.sha256(key.astype("<i8").tobytes()).hexdigest(),
                "opened_first": opened[:16].tolist(),
                "opened_sha256": hashlib.sha256(opened.astype("<i8").tobytes()).hexdigest(),
            }
        )
    return cases


def bad_kahe_keys() -> list[Case]:
    """Released parts (all zero but for one coefficient of each) that sum to no key of `count` updates."""
    changes = [
        ("one above the range of one update", 1, [52, 0, 0]),
        ("one below it", 1, [(1 << 32) - 52, 0, 0]),
        ("above the range of three", 3, [100, 50, 4]),
        ("the most negative number", 1000, [1 << 31, 0, 0]),
        ("wrapped sums", 1, [(1 << 32) - 1, (1 << 32) - 1, 54]),
    ]
    return [
        {"case": what, "profile": "kahe-14", "count": count, "place": 17, "parts": parts, "problem": "combine-refused"}
        for what, count, parts in changes
    ]


def bad_kahe_shares() -> list[Case]:
    """Changes to the shares of the first update of kahe-14, as holder 0 opens them."""
    explicit = 4 * KAHE["kahe-14"].degree + 16
    changes: list[tuple[str, dict[str, Any]]] = [
        ("a bit of the explicit part", {"flip": 0}),
        ("a bit of its tag", {"flip": explicit - 1}),
        ("a bit of the ML-KEM ciphertext", {"flip": explicit}),
        ("a bit of the X25519 share", {"flip": explicit + 1088}),
        ("a bit of the sealed seeds", {"flip": explicit + 1120}),
        ("a bit of the envelope's tag", {"flip": explicit + 1199}),
        ("another client's", {"client": "phone-2"}),
        ("another update's", {"update_id": bytes(16).hex()}),
        ("another epoch's", {"epoch": 2}),
        ("for another holder", {"holder": 1, "box": 0}),
    ]
    return [{"case": what, **change, "problem": "digest-mismatch"} for what, change in changes]


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


FILES = {
    f"{function.__name__}.json": function
    for function in (
        good_messages, bad_messages, bad_signatures, bad_tasks, bad_sizes, good_frames, bad_frames, good_residues,
        bad_residues, good_sharing, bad_sharing, good_keystream, good_derived_keys, good_gaussian, good_quantise,
        bad_layouts, good_profiles, good_requests, bad_requests, good_kahe_products, good_kahe_updates,
        good_kahe_openings, bad_kahe_keys, bad_kahe_shares,
    )
}  # fmt: skip


def text(name: str) -> str:
    """The whole content of one file."""
    return json.dumps(FILES[name](), indent=1) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (HERE / name).write_text(text(name))
