"""Fixed parties and a small task that is valid; tests change one thing at a time."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from he_holder.hpke_key import HpkeKey
from he_protocol.config import HolderEntry, ServerEntry, TaskConfig, TensorSpec
from he_protocol.identity.jws import SigningKey, fingerprint, jwk_x
from he_protocol.messages import Cnf, Credential, Jwk, Role
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.schemes.registry import load_scheme
from he_testing.plans import made

NOW = 1_800_000_000


def key(number: int) -> SigningKey:
    """The Ed25519 pair whose seed is 32 times one byte."""
    private = bytes([number]) * 32
    return SigningKey(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw(), private)


AUTHORITY, SERVER, ALICE, BOB, MALLORY = (key(n) for n in range(1, 6))


@cache
def hpke_key(number: int) -> HpkeKey:
    """The HPKE pair whose private half is 96 times one byte."""
    return HpkeKey(bytes([number]) * 96)


def credential(
    owner: SigningKey,
    name: str,
    role: Role = "client",
    *,
    issuer: SigningKey = AUTHORITY,
    iss: bytes = AUTHORITY.public,
    iat: int = NOW,
    exp: int = NOW + 3600,
) -> str:
    return issuer.sign(Credential(fingerprint(iss), name, role, iat, exp, Cnf(Jwk(jwk_x(owner.public)))))


def task_config() -> TaskConfig:
    return made(
        name="har",
        scheme="ckks",
        profile="ckks-8192",
        fingerprint=load_scheme("ckks", "ckks-8192").profile.fingerprint,
        epoch=1,
        tensors=(TensorSpec("w", (30, 100)), TensorSpec("b", (100,))),
        scale=2.0**20,
        value_range=1.0,
        privacy=PrivacyPlan("none"),
        min_clients=3,
        max_clients=100,
        collect_seconds=60,
        opening_seconds=60,
        staleness=2,
        max_openings=100,
        server=ServerEntry("aggregator", SERVER.public),
        holders=tuple(HolderEntry(f"holder-{n}", key(10 + n).public, hpke_key(n).public) for n in range(3)),
        threshold=2,
        agreement=3,
        initial_model=bytes(32),
    )
