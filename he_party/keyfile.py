"""Private keys on disk: one file per party, mode 0600, optionally under a passphrase.

The content is JSON; under a passphrase it is a JWE (RFC 7516) with PBES2-HS512+A256KW and A256GCM.
Destroyed and replaced files are overwritten, which is what software can do: flash drives and
copy-on-write file systems keep old blocks for a while, snapshots for longer. What stays behind is
unreadable under a passphrase only (crypto-erase, NIST SP 800-88).
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Annotated, TypeVar

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from msgspec import Meta

from he_party.files import private_directory, sync, write_durably
from he_party.text import read_text
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, public_from_jwk
from he_protocol.messages import MESSAGE_LIMIT, Key32, Message, Name, from_json, to_json
from he_protocol.problems import BAD_KEY_FILE, BAD_SETTINGS

PBES2_ROUNDS = 210_000
"""OWASP's 2023 figure for PBKDF2-HMAC-SHA512."""
MIN_PASSPHRASE_BYTES = 14
"""112 bits at the very best: what NIST SP 800-131A asks of a key, and joserfc with it."""
VARIABLE = "HUSHSUM_PASSPHRASE"
"""The environment variable that every program takes the passphrase of its files from; no option, which `ps` shows."""
_ALGORITHMS = ["PBES2-HS512+A256KW", "A256GCM"]

Private32 = Annotated[bytes, Meta(min_length=32, max_length=32, description="Ed25519 private key")]

M = TypeVar("M", bound=Message)


class KeyRecord(Message, frozen=True):
    """What a party's key file holds."""

    name: Name
    public: Key32
    private: Private32

    def __repr__(self) -> str:
        return f"KeyRecord(name={self.name!r})"

    @property
    def signing(self) -> SigningKey:
        return SigningKey(self.public, self.private)


def write_private(path: Path, record: Message, passphrase: str = "", *, replace: bool = False) -> None:
    """Write a secret durably with mode 0600; what it replaces is overwritten.

    Raises `bad-key-file` when the file exists and `replace` is false, or the passphrase is too short.
    """
    if path.exists() and not replace:
        raise ProblemError(BAD_KEY_FILE, f"{path} exists and is not overwritten")
    data = to_json(record)
    if passphrase:
        if len(passphrase.encode()) < MIN_PASSPHRASE_BYTES:
            raise ProblemError(
                BAD_KEY_FILE, "the passphrase is too short", expected=f"at least {MIN_PASSPHRASE_BYTES} bytes"
            )
        header = {"alg": _ALGORITHMS[0], "enc": _ALGORITHMS[1], "p2c": PBES2_ROUNDS}
        key = OctKey.import_key(passphrase.encode())
        data = jwe.encrypt_compact(header, data, key, algorithms=_ALGORITHMS).encode()
    private_directory(path.parent)
    before = os.open(path, os.O_WRONLY) if path.exists() else None
    write_durably(path, data)
    if before is not None:
        _overwrite(before)


def environment_passphrase() -> str:
    """The passphrase that this program was started with, or "".

    Raises `bad-settings` for a variable of a similar name: with it in place of ours, keys would be written in clear.
    """
    for name in os.environ:
        if name.startswith("HUSHSUM_") and name.endswith("PASSPHRASE") and name != VARIABLE:
            raise ProblemError(BAD_SETTINGS, "the passphrase has one variable", expected=VARIABLE, got=name)
    return os.environ.get(VARIABLE, "")


def erase_private(path: Path) -> None:
    """Overwrite and unlink a secret, durably; one that is gone already is fine."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    _overwrite(descriptor)
    path.unlink(missing_ok=True)  # two processes may be at it
    sync(path.parent)


def read_private(
    path: Path, kind: type[M], passphrase: str = "", *, limit: int = MESSAGE_LIMIT, group_may_read: bool = False
) -> M:
    """Read what `write_private` wrote; `limit` in bytes of the message.

    Raises `bad-key-file` when it is missing, readable by others, or the passphrase is wrong.
    """
    most = 2 * limit + 4096  # base64url, and a JWE's header
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ProblemError(BAD_KEY_FILE, f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:
        raise ProblemError(BAD_KEY_FILE, f"{path} is no key file", expected=f"at most {most} bytes")
    _check_mode(path, mode, group_may_read)
    data = data.removeprefix(codecs.BOM_UTF8).strip()  # what an editor, or a paste, puts around
    if not data.startswith(b"{"):
        if len(passphrase.encode()) < MIN_PASSPHRASE_BYTES:
            raise ProblemError(BAD_KEY_FILE, f"{path} is under a passphrase that was not given")
        try:
            key = OctKey.import_key(passphrase.encode())
            registry = jwe.JWERegistry(algorithms=_ALGORITHMS)
            registry.max_ciphertext_length = limit * 4 // 3 + 4  # base64url
            data = jwe.decrypt_compact(data, key, registry=registry).plaintext or b""
        except (JoseError, ValueError, OverflowError):  # the last for a negative number of rounds
            raise ProblemError(BAD_KEY_FILE, f"the passphrase does not open {path}") from None
    return from_json(data, kind, limit=limit)


def read_public(path: Path) -> bytes:
    """An Ed25519 public key from a text file, as `authority.pub`.

    Raises `bad-key-file` for one that cannot be read, and what `public_from_jwk` raises; both name the file.
    """
    text = read_text(path, BAD_KEY_FILE)
    try:
        return public_from_jwk(text)
    except ProblemError as refusal:
        raise ProblemError(refusal.problem, f"{path}: {refusal.detail}") from None


def _check_mode(path: Path, mode: int, group_may_read: bool) -> None:
    """Raises `bad-key-file` for a file that others may read or write. Only POSIX has such modes."""
    allowed, expected = (0o740, "mode 0640 or less") if group_may_read else (0o700, "mode 0600")
    if os.name == "posix" and mode & 0o777 & ~allowed:
        detail = f"{path} is open to others"
        if not mode & 0o037:
            detail += " in its group, which the setting group_readable_keys allows"
        raise ProblemError(BAD_KEY_FILE, detail, expected=expected, got=f"{mode & 0o777:04o}")


def _overwrite(descriptor: int) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
