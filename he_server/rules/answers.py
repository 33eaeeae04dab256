"""What a key holder says about a round's manifest."""

from __future__ import annotations

from typing import cast, get_args

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party, check_signed
from he_protocol.identity.jws import message_kind
from he_protocol.messages import Objection, Screening, Vote
from he_protocol.problems import BAD_SIGNATURE, NOT_ADDRESSED
from he_protocol.task import Task
from he_server.rules.records import AnswerRecord, Kind, RoundRecord
from he_server.rules.updates import check_binding


def read_answer(task: Task, record: RoundRecord, token: str, party: Party, now: float) -> AnswerRecord:
    """What a holder says about a round's manifest, once signature and binding are checked.

    Raises `bad-signature`, `not-addressed`, `wrong-task` or `wrong-epoch`.
    """
    kind = kind_of(token)
    if kind == "vote":
        vote = check_signed(token, Vote, party, "holder")
        check_binding(task, vote.task_hash, vote.epoch)
        if vote.opening != record.opening:
            raise ProblemError(
                NOT_ADDRESSED, "the vote is for another opening", expected=record.opening, got=vote.opening
            )
        return AnswerRecord(party.name, kind, vote.manifest.hex(), token, "", "", now)
    if kind == "screening":
        screening = check_signed(token, Screening, party, "holder")
        check_binding(task, screening.task_hash, screening.epoch)
        named, detail, problem, manifest = screening.round, "", "", screening.manifest
    else:
        objection = check_signed(token, Objection, party, "holder")
        check_binding(task, objection.task_hash, objection.epoch)
        named, detail, problem, manifest = objection.round, objection.detail, objection.problem, objection.manifest
    if named != record.number:
        raise ProblemError(NOT_ADDRESSED, "the path names another round", expected=named, got=record.number)
    return AnswerRecord(party.name, kind, manifest.hex(), token, problem, detail, now)


def kind_of(token: str) -> Kind:
    """What a holder's answer says it is; its signature is not checked. Raises `bad-signature` for anything else."""
    named = message_kind(token)
    for kind in get_args(Kind):
        if kind == named:
            return cast(Kind, kind)
    raise ProblemError(
        BAD_SIGNATURE, "not an answer to a manifest", expected="screening, vote or objection", got=named[:80]
    )
