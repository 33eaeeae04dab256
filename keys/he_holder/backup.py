"""Backup of a holder: its identity and its ledger, but no key that can open a sum.

A copy of a ledger does not know what was opened after it was made, so a restored holder must not
open anything that the one before it could open. Its keys are therefore not in the backup: it starts
with a new HPKE key and takes part from the next epoch on; until then the others are the quorum.
Nor can an old backup bring destroyed keys back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from he_holder.holder import KeyHolder
from he_holder.keyring import rotate
from he_holder.ledger import LEDGER_FILE, Ledger
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE
from he_party.files import private_directory, write_durably
from he_party.keyfile import KeyRecord, read_private, write_private
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import jwk_x
from he_protocol.messages import Key32, Message
from he_protocol.problems import BAD_KEY_FILE

LIMIT = 1 << 30
"""Bytes of the largest backup."""


class Backup(Message, frozen=True):
    """`ledger`: the bytes of the SQLite file."""

    identity: KeyRecord
    credential: str
    authority: Key32
    ledger: bytes

    def __repr__(self) -> str:
        return f"Backup(identity={self.identity})"


async def backup(holder: KeyHolder, path: Path) -> None:
    """Write one file under the holder's passphrase; the holder goes on as before. Raises `bad-key-file`."""
    if not holder.passphrase:
        raise ProblemError(BAD_KEY_FILE, "a backup leaves the machine: it needs a passphrase")
    who = holder.identity
    identity = KeyRecord(who.name, who.key.public, who.key.private)
    record = Backup(identity, who.credential, who.authority, await holder.ledger.snapshot())
    await asyncio.to_thread(write_private, path, record, holder.passphrase)


async def restore(path: Path, directory: Path, passphrase: str, now: float) -> None:
    """Make a holder from a backup in a new directory: with a renamed ledger, a new HPKE key, and a request for it.

    Raises `bad-key-file`.
    """
    record = await asyncio.to_thread(_begin, path, directory, passphrase)
    ledger = await Ledger.open(directory / LEDGER_FILE)
    try:
        await ledger.rename()
    finally:
        await ledger.close()
    await asyncio.to_thread(_finish, record, directory, passphrase, now)


def _begin(path: Path, directory: Path, passphrase: str) -> Backup:
    if directory.exists() and any(directory.iterdir()):
        raise ProblemError(BAD_KEY_FILE, f"{directory} is not empty")
    record = read_private(path, Backup, passphrase, limit=LIMIT)
    private_directory(directory)
    write_durably(directory / LEDGER_FILE, record.ledger)
    return record


def _finish(record: Backup, directory: Path, passphrase: str, now: float) -> None:
    """The identity comes last: a crash leaves no holder whose ledger still has the old name."""
    (directory / AUTHORITY_FILE).write_text(jwk_x(record.authority) + "\n")
    (directory / CREDENTIAL_FILE).write_text(record.credential + "\n")
    write_private(directory / KEY_FILE, record.identity, passphrase)
    rotate(directory, now, passphrase)
