"""Scheme `kahe`: products, encrypted updates and openings; keys and shares that do not fit."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from he_client.schemes.kahe import KaheEncryptor
from he_holder.schemes import make_share_maker
from he_protocol import messages as m
from he_protocol.arithmetic.keystream import expand_words
from he_protocol.arithmetic.ntt_lanes import CommonProduct
from he_protocol.arithmetic.residues import fold, pack, unpack
from he_protocol.messages import to_json
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.schemes.kahe import KaheProfile, combined_key, common_key, envelope_info
from he_protocol.schemes.scheme import combine
from he_protocol.task import Task
from tests.support.kahe import SECURE as KAHE
from tests.support.kahe import FixedWords
from tests.vectors.parties import EPOCH_ID, NOW, Case, hpke_key, kahe_config, sha


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
            rows = product.groups(number)
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


def kahe_updates(profile: str) -> tuple[Task, list[Case], list[dict[str, bytes]]]:
    """Two clients' updates under `FixedWords`; envelopes are randomised by HPKE, so seeds stand for them."""
    config = kahe_config(profile)
    task = Task(config, "", hashlib.sha256(to_json(config)).digest())
    cases, bodies = [], []
    for client in ("phone-1", "phone-2"):
        words, update_id = FixedWords(client.encode()), sha(client)[:16]
        values = (expand_words(sha(f"values {client}"), task.length) % np.uint64(2001)).astype(np.int64) - 1000
        body = {part.name: b"" for part in task.body}

        def write(part: str, data: bytes | memoryview, body: dict[str, bytes] = body) -> None:
            body[part] += bytes(data)

        def source(start: int, stop: int, values: np.ndarray = values) -> np.ndarray:
            return values[start:stop]

        KaheEncryptor(task, client, threads=1, words=words)._encrypt(update_id, source, write)
        bodies.append(body)
        explicit = body["shares"][: task.scheme.explicit_bytes]  # type: ignore[attr-defined]
        cases.append(
            {
                "config": to_json(config).decode(),
                "epoch_id": task.epoch_id.hex(),
                "client": client,
                "update_id": update_id.hex(),
                "words": client,
                "values_key": sha(f"values {client}").hex(),
                "seeds": [seed.hex() for seed in words.seeds(task.sharing.subshares)],
                "envelope_info": [
                    envelope_info(task.epoch_id, client, update_id, holder.name).hex()
                    for holder in config.committee.holders
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
        layout, shares = task.section("sum").layout, task.scheme.share_layout(task.length)
        assert layout is not None
        total = layout.zeros()
        for body in bodies:
            fold(total.reshape(layout.rows, layout.degree), body["b"], layout)
        folded = hashlib.sha256(pack(total, layout)).hexdigest()
        released: dict[int, bytes] = {}
        for index in (0, 1):
            opening = make_share_maker(task, index, hpke_key(index), {}).begin()
            for client, body in zip(("phone-1", "phone-2"), bodies, strict=True):
                parts = tuple(m.SectionEntry(part.name, part.size, sha(part.name)) for part in task.body)
                opening.add(m.UpdateHeader(task.hash, 1, sha(client)[:16], client, 0, NOW, parts), body["shares"])
            released |= dict(opening.release(bytes(32), 0))
        vectors = [unpack(released[part], shares) for part in range(task.sharing.subshares)]
        key = combined_key(KAHE[profile], vectors, 2)
        opened = combine(task.scheme, total, vectors, task.length, 2, task.epoch_id)
        cases.append(
            {
                "profile": profile,
                "updates": ["phone-1", "phone-2"],
                "b_sum_sha256": folded,
                "shares_first": [released[part][:16].hex() for part in range(task.sharing.subshares)],
                "shares_sha256": [hashlib.sha256(released[part]).hexdigest() for part in range(task.sharing.subshares)],
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
        {
            "case": what,
            "profile": "kahe-14",
            "count": count,
            "place": 17,
            "subshares": parts,
            "problem": "combine-refused",
        }
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
