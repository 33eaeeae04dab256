"""A party's folder, and the request by which it enrolls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from he_party.files import is_of_many
from he_party.keyfile import KeyRecord, write_private
from he_party.names import shown
from he_protocol.envelope import possession_message
from he_protocol.errors import ProblemError
from he_protocol.identity.invitations import Invitation
from he_protocol.identity.jws import SigningKey, fingerprint, read_unverified
from he_protocol.messages import EnrollRequest, Name, Role
from he_protocol.problems import BAD_SETTINGS

KEY_FILE = "identity.key"
CREDENTIAL_FILE = "credential.jws"
AUTHORITY_FILE = "authority.pub"
REQUEST_FILE = "enroll-request.jws"


def create(
    directory: Path,
    name: str,
    role: Role,
    now: float,
    *,
    passphrase: str = "",
    invitation: str = "",
    key_file: str = KEY_FILE,
    display: str = "",
    hpke: bytes = b"",
    prove: Callable[[bytes], bytes] = lambda message: b"",
) -> str:
    """Make a key pair, store it with mode 0600, and return the signed enrollment request.

    The directory is new, or has files only: the party's folder is closed to others.

    `display` is the name as people write it (`he_party.names`), `invitation` the authority's code; "" for none.
    `hpke` is a key holder's public HPKE key, and `prove` signs with its private half. Raises `bad-settings` for a name
    that no credential could carry or a folder of others, `bad-invitation` for what is no code, and `bad-key-file`
    rather than overwrite a key.
    """
    check_own_folder(directory, key_file)
    invited = Invitation.read(invitation) if invitation else None
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ProblemError(BAD_SETTINGS, f"the name {name!r}: {error}") from None
    key = SigningKey.generate()
    write_private(directory / key_file, KeyRecord(name, key.public, key.private), passphrase)
    proof = prove(possession_message(name, key.public, hpke))
    asked = EnrollRequest(name, role, key.public, int(now), hpke, proof, display=display)
    request = key.sign(asked if invited is None else invited.accept(asked))
    (directory / REQUEST_FILE).write_text(request + "\n")
    return request


def check_own_folder(directory: Path, key_file: str) -> None:
    """A folder in which a key is to be made is nobody else's: it has no folders, unless it is a party's already.

    Raises `bad-settings`.
    """
    own = (key_file, REQUEST_FILE, CREDENTIAL_FILE, AUTHORITY_FILE)
    try:
        if not directory.is_dir() or any((directory / name).exists() for name in own):
            return
        if not is_of_many(directory) and not any(path.is_dir() for path in directory.iterdir()):
            return
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot read {directory}: {error.strerror}") from None
    raise ProblemError(BAD_SETTINGS, f"{directory} is not a party's own", expected="a new or an empty folder")


def request_line(directory: Path, request: str) -> str:
    """What `init` says at its end: the authority shows the same fingerprint, for comparison over another channel."""
    asked = read_unverified(request, EnrollRequest)
    who = f"{asked.role} {shown(asked.name, asked.display)}, key {fingerprint(asked.key)}"
    return (
        f"{who}: the authority sees the same when it enrolls you\n"
        f"send {directory / REQUEST_FILE} to it, then put its {CREDENTIAL_FILE} and {AUTHORITY_FILE} beside it"
    )
