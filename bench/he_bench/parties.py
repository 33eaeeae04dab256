"""Everybody that one task needs, in memory: authority, server, key holders, clients."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from msgspec.structs import replace

from he_authority.enrollment import issue_credential
from he_holder.hpke_key import HpkeKey
from he_party.identity import Identity
from he_protocol.envelope import possession_message
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import EnrollRequest, Role

VALID_DAYS = 7
HOLDERS, THRESHOLD, AGREEMENT = 4, 2, 3


@dataclass
class Parties:
    """Identities that one authority has enrolled."""

    authority: SigningKey = field(default_factory=SigningKey.generate)

    def __post_init__(self) -> None:
        self.hpke = [HpkeKey.generate() for _ in range(HOLDERS)]
        self.holders = [self._party(f"holder-{i + 1}", "holder", key) for i, key in enumerate(self.hpke)]
        self.server = self._party("server", "server")
        self._clients: dict[int, Identity] = {}

    def client(self, number: int) -> Identity:
        """Client `number`, enrolled when first asked for."""
        if number not in self._clients:
            self._clients[number] = self._party(f"client-{number}", "client")
        return self._clients[number]

    def _party(self, name: str, role: Role, hpke: HpkeKey | None = None) -> Identity:
        key, now = SigningKey.generate(), time.time()
        asked = EnrollRequest(name, role, key.public, int(now))
        if hpke is not None:
            proof = hpke.prove(possession_message(name, key.public, hpke.public))
            asked = replace(asked, hpke=hpke.public, possession=proof)
        request = key.sign(asked)
        return Identity(
            name, key, issue_credential(self.authority, request, role, now=now, days=VALID_DAYS), self.authority.public
        )
