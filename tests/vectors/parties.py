"""Keys from fixed bytes, and the task and credential of all vectors."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from he_holder.hpke_key import HpkeKey
from he_protocol import messages as m
from he_protocol.arithmetic.keystream import expand_words
from he_protocol.config import HolderEntry, ServerEntry, TaskConfig, TensorSpec
from he_protocol.identity.jws import SigningKey, fingerprint, jwk_x
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.schemes.registry import load_scheme
from he_testing.plans import changed, made
from tests.support.kahe import SECURE as KAHE

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
    return made(
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
        holders=tuple(HolderEntry(f"holder-{n}", key(10 + n).public, hpke_key(n).public) for n in range(3)),
        threshold=2,
        agreement=3,
        initial_model=sha("the initial model"),
    )


def kahe_config(profile: str) -> TaskConfig:
    """The task above under `kahe`, with holders whose HPKE keys exist."""
    config = task_config()
    holders = [replace(h, hpke=hpke_key(n).public) for n, h in enumerate(config.committee.holders)]
    return changed(
        config, scheme="kahe", profile=profile, fingerprint=KAHE[profile].fingerprint, scale=16.0, max_clients=3,
        privacy=PrivacyPlan("none"), holders=tuple(holders),
    )  # fmt: skip


def hpke_key(number: int) -> HpkeKey:
    return HpkeKey(stream(sha(f"hpke private {number}"), 96))
