"""What a key holder's share must be bound to."""

from __future__ import annotations

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Manifest, Share
from he_protocol.problems import MANIFEST_MISMATCH, NOT_ADDRESSED, WRONG_SHARE, WRONG_STATE
from he_protocol.task import Task
from he_server.rules.committee import Member
from he_server.rules.records import RoundRecord
from he_server.rules.updates import check_binding


def check_share(task: Task, record: RoundRecord, member: Member, share: Share) -> None:
    """What a share must be bound to, before its vectors are read.

    Raises `wrong-task`, `wrong-epoch`, `not-addressed`, `wrong-state`, `manifest-mismatch` or `wrong-share`.
    """
    check_binding(task, share.task_hash, share.epoch)
    if share.round != record.number:
        raise ProblemError(NOT_ADDRESSED, "the path names another round", expected=share.round, got=record.number)
    if record.state != "opening":
        raise ProblemError(WRONG_STATE, "the round does not wait for shares", expected="opening", got=record.state)
    if share.manifest.hex() != record.manifest_hash:
        raise ProblemError(
            MANIFEST_MISMATCH,
            "the share is for another manifest",
            expected=record.manifest_hash,
            got=share.manifest.hex(),
        )
    manifest = read_unverified(record.manifest, Manifest)
    buckets = {entry.update_id: entry.bucket for entry in manifest.updates}
    failed = [entry.bucket for entry in share.failed]
    if len(set(failed)) != len(failed) or any(buckets.get(f.update_id) != f.bucket for f in share.failed):
        raise ProblemError(WRONG_SHARE, "a failed bucket stands twice, or without an update of its own", got=failed)
    opened, known = sorted(set(buckets.values()) - set(failed)), task.sharing.subshares_of(member.index)
    got = [(entry.bucket, entry.subshare) for entry in share.vectors]
    if got != [(bucket, subshare) for bucket in opened for subshare in known]:
        raise ProblemError(
            WRONG_SHARE,
            "not every subshare that this holder knows, of every bucket in turn",
            expected=f"subshares {known} of buckets {opened}",
            got=f"{len(got)} subshares: {got[: len(known) + 1]}",
        )
