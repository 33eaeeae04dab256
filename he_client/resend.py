"""An update that waits in the spool, made fit to be sent: since it was signed, other things may have changed.

What was encrypted never changes, nor does its id: the server takes it once, however often and under whatever head it
comes.
"""

from __future__ import annotations

import msgspec

from he_client.spool import EncryptedUpdate, Spool
from he_party.identity import Identity
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS
from he_protocol.identity.jws import read_unverified, verify
from he_protocol.messages import SignedUpdate, UpdateHeader
from he_protocol.problems import BAD_SIGNATURE, NOT_ADDRESSED, STALE_UPDATE, WRONG_SIZE
from he_protocol.task import Task


def make_fit(task: Task, spool: Spool, encrypted: EncryptedUpdate, identity: Identity, now: float) -> None:
    """Give an update the head that it would have if it were signed now, where the one that it has would be refused.

    Raises what can never pass: `malformed` (a crash cut the head off), `wrong-size` (or a section), `not-addressed`
    (another client's) or `stale-update`.
    """
    for section, path in zip(task.body, encrypted.sections, strict=True):
        size = path.stat().st_size if path.exists() else 0
        if size != section.size:
            raise ProblemError(WRONG_SIZE, f"section {section.name} on this device", expected=section.size, got=size)
    head = spool.header(encrypted)
    fit = renewed(task, head, identity, now)
    if fit != head:
        spool.renew(encrypted, fit)


def renewed(task: Task, head: SignedUpdate, identity: Identity, now: float) -> SignedUpdate:
    """The head under our credential of today, and signed again if it was under another key of ours, or in the future.

    Raises `malformed`, `not-addressed` or `stale-update`.
    """
    header = read_unverified(head.header, UpdateHeader)
    if header.client != identity.name:
        raise ProblemError(NOT_ADDRESSED, "the update is another client's", expected=identity.name, got=header.client)
    if header.created < (oldest := int(now) - task.config.rounds.update_lifetime):
        raise ProblemError(STALE_UPDATE, "the update is too old", expected=f"made after {oldest}", got=header.created)
    token = head.header
    if header.created > now + CLOCK_SKEW_SECONDS or not _signed_by(token, identity):
        token = identity.key.sign(msgspec.structs.replace(header, created=int(now)))
    return SignedUpdate(token, identity.credential)


def _signed_by(token: str, identity: Identity) -> bool:
    try:
        verify(token, UpdateHeader, identity.key.public)
    except ProblemError as refusal:
        if refusal.problem != BAD_SIGNATURE:
            raise
        return False
    return True
