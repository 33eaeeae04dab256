"""A party's own identity: its key, its credential, and the authority it trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE
from he_party.keyfile import KeyRecord, read_private, read_public
from he_party.text import read_text
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, public_from_jwk, verify
from he_protocol.messages import Credential, Role
from he_protocol.problems import BAD_KEY_FILE, BAD_SETTINGS, NOT_ADDRESSED


@dataclass(frozen=True)
class Identity:
    """A party's own identity. `authority` is the 32-byte public key that everything is checked against."""

    name: str
    key: SigningKey
    credential: str
    authority: bytes

    @classmethod
    def load(
        cls, directory: Path, passphrase: str = "", *, role: Role | None = None, group_may_read: bool = False
    ) -> Identity:
        """Read `identity.key`, `credential.jws` and `authority.pub` from a directory, of a party in this role if given.

        Raises `bad-settings` for another party's directory, `bad-key-file`, `bad-signature` when the credential is not
        by this authority, or `not-addressed` when it was issued for another key.
        """
        record = read_private(directory / KEY_FILE, KeyRecord, passphrase, group_may_read=group_may_read)
        authority = read_public(directory / AUTHORITY_FILE)
        token = read_text(directory / CREDENTIAL_FILE, BAD_KEY_FILE)
        credential = verify(token, Credential, authority)
        if credential.sub != record.name or public_from_jwk(credential.cnf.jwk.x) != record.public:
            raise ProblemError(
                NOT_ADDRESSED, "the credential is for another key", expected=record.name, got=credential.sub
            )
        if role not in {None, credential.role}:
            raise ProblemError(BAD_SETTINGS, f"whose directory is {directory}?", expected=role, got=credential.role)
        return cls(record.name, record.signing, token, authority)
