"""A party's own identity: its key, its credential, and the authority it trusts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from he_party.keyfile import KeyRecord, read_private, read_public, write_private
from he_party.text import read_text
from he_protocol.envelope import possession_message
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, public_from_jwk, verify
from he_protocol.messages import Credential, EnrollRequest, Name, Role
from he_protocol.problems import BAD_KEY_FILE, BAD_SETTINGS, NOT_ADDRESSED

KEY_FILE = "identity.key"
CREDENTIAL_FILE = "credential.jws"
AUTHORITY_FILE = "authority.pub"
REQUEST_FILE = "enroll-request.jws"


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


def create(
    directory: Path,
    name: str,
    role: Role,
    now: float,
    *,
    passphrase: str = "",
    hpke: bytes = b"",
    prove: Callable[[bytes], bytes] = lambda message: b"",
) -> str:
    """Make a key pair, store it with mode 0600, and return the signed enrollment request.

    `hpke` is a key holder's public HPKE key, and `prove` signs with its private half. Raises `bad-settings` for a name
    that no credential could carry, and `bad-key-file` rather than overwrite a key.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ProblemError(BAD_SETTINGS, f"the name {name!r}: {error}") from None
    key = SigningKey.generate()
    write_private(directory / KEY_FILE, KeyRecord(name, key.public, key.private), passphrase)
    possession = prove(possession_message(name, key.public, hpke))
    request = key.sign(EnrollRequest(name, role, key.public, int(now), hpke, possession))
    (directory / REQUEST_FILE).write_text(request + "\n")
    return request
