"""Residues, sharing, keystreams, noise, quantisation and profiles."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.residues import ResidueLayout, pack
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.quantise import quantise
from he_protocol.schemes.ckks import PROFILES, common_polynomial
from he_protocol.sharing import Sharing
from tests.support.kahe import SECURE as KAHE
from tests.vectors.parties import EPOCH_ID, Case, sha, stream

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
    changes: list[tuple[str, Case]] = [
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
            "subshares_of": [list(Sharing(n, t).subshares_of(h)) for h in range(n)],
        }
        for n, t in ((1, 1), (2, 2), (3, 2), (3, 3), (5, 3), (7, 4))
    ]


def bad_sharing() -> list[Case]:
    return [
        {"case": f"{t} of {n}", "holders": n, "threshold": t, "problem": "bad-committee"}
        for n, t in ((3, 0), (3, 4), (10, 6))
    ]


def good_committees() -> list[Case]:
    """threshold/holders/agreement, and how many may collude with the server, be away, and must say so to exclude."""
    return [
        {"committee": text, "colluders": f, "away": away, "needed_to_exclude": needed}
        for text, f, away, needed in (
            ("2/4/3", 1, 1, 2),
            ("3/7/5", 2, 2, 3),
            ("3/5/4", 2, 1, 2),
            ("2/3/3", 1, 0, 1),
            ("2/3/2", 0, 1, 1),
            ("1/1/1", 0, 0, 1),
        )
    ]


def bad_committees() -> list[Case]:
    texts = ("", "2/4", "2/4/3/1", "0/4/3", "4/4/3", "2/4/5", "2/4/2", "-2/4/3", "2/4/three")
    return [{"committee": text, "problem": "bad-committee"} for text in texts]


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
