"""Parties in memory: an authority, and whom it has enrolled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config
from he_holder.hpke_key import HpkeKey
from he_party.identity import Identity
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.envelope import possession_message
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import EnrollRequest, Role
from he_protocol.task import Task
from he_protocol.tensors import model_digest


@dataclass
class Authority:
    """Enrols whoever asks. `clock` gives Unix seconds."""

    key: SigningKey = field(default_factory=SigningKey.generate)
    clock: Callable[[], float] = time.time

    def party(
        self,
        name: str,
        role: Role,
        *,
        hpke: HpkeKey | bytes | None = None,
        now: float | None = None,
        days: float = 30,
    ) -> Identity:
        """A party with a new key and a credential of `days` from `now` on, by default from the clock's time."""
        when, key = self.clock() if now is None else now, SigningKey.generate()
        request = enroll_request(name, role, key, hpke, when)
        return Identity(name, key, issue_credential(self.key, request, role, now=when, days=days), self.key.public)


def enroll_request(
    name: str, role: Role, key: SigningKey, hpke: HpkeKey | bytes | None = None, now: float = 0.0
) -> str:
    """What `he_party.enrolling.create` signs, for a key pair that is there; a public HPKE key alone proves nothing."""
    if hpke is None or isinstance(hpke, bytes):
        return key.sign(EnrollRequest(name, role, key.public, int(now), hpke or b""))
    possession = hpke.prove(possession_message(name, key.public, hpke.public))
    return key.sign(EnrollRequest(name, role, key.public, int(now), hpke.public, possession))


@dataclass
class Parties:
    """An authority, a server, a committee of so many holders, and whichever clients are asked for."""

    holders: int = 4
    authority: Authority = field(default_factory=Authority, kw_only=True)
    clients: dict[str, Identity] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self.hpke = [HpkeKey.generate() for _ in range(self.holders)]
        self.committee = [self.authority.party(f"holder-{i}", "holder", hpke=key) for i, key in enumerate(self.hpke)]
        self.server = self.authority.party("server", "server")

    def sign_task(self, plan: Mapping[str, Any], model: Mapping[str, npt.NDArray[np.float32]]) -> Task:
        """A task of these parties: a plan as `he_testing.plans.plan` makes it, and the initial model."""
        key = self.authority.key
        spec = ModelSpec(tuple(TensorSpec(name, value.shape) for name, value in model.items()), model_digest(model))
        committee = [holder.credential for holder in self.committee]
        config = build_config(plan, spec, self.server.credential, committee, key.public)
        return Task.from_token(key.sign(config), key.public)

    def client(self, name: str) -> Identity:
        """The client of this name, enrolled when first asked for."""
        if name not in self.clients:
            self.clients[name] = self.authority.party(name, "client")
        return self.clients[name]
