"""A holder's HPKE keys: one file for each, named by its public key.

A key belongs to the first ledger that uses it, for ever. A ledger that was restored or started anew
does not know what such a key has opened, so it must never judge for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from he_holder.hpke_key import HpkeKey
from he_party.enrolling import REQUEST_FILE, create
from he_party.identity import Identity
from he_party.keyfile import read_private, write_private
from he_protocol.envelope import possession_message
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import fingerprint, read_unverified
from he_protocol.messages import Credential, EnrollRequest, Message
from he_protocol.problems import BAD_COMMITTEE, LEDGER_MISMATCH


class HpkeRecord(Message, frozen=True):
    """What a key file holds. `ledger` names the ledger that the key belongs to; empty before its first use."""

    private: bytes
    ledger: bytes = b""

    def __repr__(self) -> str:
        return f"HpkeRecord(ledger={self.ledger.hex()})"


@dataclass(frozen=True)
class Keyring:
    """The key files under one directory."""

    directory: Path
    passphrase: str = field(default="", repr=False)

    @classmethod
    def of(cls, directory: Path, passphrase: str = "") -> Keyring:
        """Of the holder that lives in a directory."""
        return cls(directory / "hpke", passphrase)

    def path(self, public: bytes) -> Path:
        """Where the private half of `public` is kept."""
        return self.directory / f"{fingerprint(public)}.key"

    def add(self, key: HpkeKey) -> None:
        """Keep a fresh key, which belongs to no ledger yet."""
        write_private(self.path(key.public), HpkeRecord(key.private), self.passphrase)

    def find(self, public: bytes, ledger: bytes) -> HpkeKey:
        """The private half of `public`, from now on bound to this ledger.

        Raises `bad-committee` when we do not have it, `ledger-mismatch` when it belongs to another ledger.
        """
        path = self.path(public)
        if not path.exists():
            raise ProblemError(BAD_COMMITTEE, "the task lists another HPKE key than ours", got=fingerprint(public))
        record = read_private(path, HpkeRecord, self.passphrase)
        if not record.ledger:
            write_private(path, replace(record, ledger=ledger), self.passphrase, replace=True)
        else:
            check_ledger(record, ledger)
        return HpkeKey(record.private)


def new_holder(
    directory: Path, name: str, now: float, passphrase: str = "", invitation: str = "", display: str = ""
) -> str:
    """Make a holder's signing and HPKE keys; returns its signed enrollment request.

    Raises what `create` raises.
    """
    key = HpkeKey.generate()
    request = create(
        directory,
        name,
        "holder",
        now,
        passphrase=passphrase,
        invitation=invitation,
        display=display,
        hpke=key.public,
        prove=key.prove,
    )
    Keyring.of(directory, passphrase).add(key)
    return request


def rotate(directory: Path, now: float, passphrase: str = "", *, group_may_read: bool = False) -> str:
    """Make a holder's HPKE key for the epochs to come; returns the request that lets the authority certify it.

    Tasks that were joined go on with the keys that they list.
    """
    identity, key = (
        Identity.load(directory, passphrase, role="holder", group_may_read=group_may_read),
        HpkeKey.generate(),
    )
    Keyring.of(directory, passphrase).add(key)
    proof = key.prove(possession_message(identity.name, identity.key.public, key.public))
    display = read_unverified(identity.credential, Credential).display
    request = identity.key.sign(
        EnrollRequest(identity.name, "holder", identity.key.public, int(now), key.public, proof, display=display)
    )
    (directory / REQUEST_FILE).write_text(request + "\n")
    return request


def check_ledger(record: HpkeRecord, ledger: bytes) -> None:
    """A key's history is in its own ledger only. Raises `ledger-mismatch`."""
    if record.ledger != ledger:
        raise ProblemError(
            LEDGER_MISMATCH,
            "take part in the next epoch instead, with a new key ('he-holder rotate')",
            expected=record.ledger.hex(),
            got=ledger.hex(),
        )
