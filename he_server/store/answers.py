"""What key holders say about the manifests of rounds: screenings, votes, objections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from he_protocol.documents import RoundStatus, Stage, Waiting
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import Objection, Screening
from he_protocol.problems import WRONG_STATE
from he_protocol.task import Task
from he_server.rules.audit_chain import Event
from he_server.rules.records import AnswerRecord, RoundRecord, ShareRecord, committee_status
from he_server.rules.rounds import stage_of
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.queries import SELECT_ROUNDS
from he_server.store.records import answer_record, round_record
from he_server.store.schema import answers, rounds, shares

DONE: dict[Stage, str] = {"screen": "screening", "vote": "vote", "release": "share"}
"""What a holder has sent when it is done with a stage."""


@dataclass(frozen=True)
class AnswerStore:
    """State changes and reads of `answers`."""

    database: Database

    async def add(self, task: Task, record: RoundRecord, said: AnswerRecord) -> bool:
        """Keep what a holder says about a round's manifest; False for the same again. A newer word of its kind replaces
        the one before.

        Raises `wrong-state` when the round does not wait for such a word, or not about that manifest (any more).
        """
        async with self.database.write() as connection:
            query = SELECT_ROUNDS.where(rounds.c.id == record.id)
            current = round_record((await connection.execute(query.with_for_update(of=rounds))).one())
            stage: Stage = "screen" if current.state == "closed" else "vote"
            wanted = {"screen": ("screening", "objection"), "vote": ("vote", "objection")}
            if not current.manifest or current.state not in {"closed", "opening"} or said.kind not in wanted[stage]:
                raise ProblemError(WRONG_STATE, f"the round does not wait for a {said.kind}", got=current.state)
            if said.manifest_hash != current.manifest_hash:
                raise ProblemError(
                    WRONG_STATE,
                    "the round has another manifest by now",
                    expected=current.manifest_hash,
                    got=said.manifest_hash,
                )
            mine = (answers.c.round_id == record.id) & (answers.c.holder == said.holder) & (answers.c.kind == said.kind)
            if (await connection.execute(select(answers.c.token).where(mine))).scalar_one_or_none() == said.token:
                return False
            await connection.execute(delete(answers).where(mine))
            await connection.execute(
                insert(answers).values(
                    round_id=record.id,
                    holder=said.holder,
                    kind=said.kind,
                    manifest_hash=said.manifest_hash,
                    token=said.token,
                    problem=said.problem,
                    detail=said.detail,
                    received=said.received,
                )
            )
            if said.kind != "screening":
                detail = {"holder": said.holder, "manifest": said.manifest_hash, "problem": said.problem}
                event: Event = "vote-cast" if said.kind == "vote" else "round-refused"
                await audit.append(connection, event, task.id, record.number, **detail)
            return True

    async def of_round(self, round_id: int) -> tuple[AnswerRecord, ...]:
        """Everything that holders said about one round's manifests."""
        query = select(answers).where(answers.c.round_id == round_id).order_by(answers.c.holder, answers.c.received)
        async with self.database.read() as connection:
            return tuple(answer_record(row) for row in (await connection.execute(query)).mappings())

    async def seen_by_holders(self, task: Task) -> tuple[int, int]:
        """The opening number and model version that more holders say they have seen than may lie; else 0."""
        about = answers.join(rounds, rounds.c.id == answers.c.round_id)
        query = select(answers).select_from(about).where(rounds.c.task_hash == task.id, answers.c.kind != "vote")
        seen: dict[str, tuple[int, int]] = {}
        async with self.database.read() as connection:
            for row in await connection.execute(query.order_by(answers.c.received)):
                kind: type[Screening] | type[Objection] = Screening if row.kind == "screening" else Objection
                said = read_unverified(row.token, kind)  # it was verified when it came
                seen[row.holder] = said.seen_opening, said.seen_version
        if len(seen) <= task.committee.colluders:
            return 0, 0
        openings, versions = (sorted(numbers, reverse=True) for numbers in zip(*seen.values(), strict=True))
        return openings[task.committee.colluders], versions[task.committee.colluders]

    async def _said_about(
        self, found: Sequence[RoundRecord]
    ) -> dict[int, tuple[list[AnswerRecord], list[ShareRecord]]]:
        """Answers and shares of several rounds, by the round's id; without the tokens, which are large."""
        said: dict[int, tuple[list[AnswerRecord], list[ShareRecord]]] = {record.id: ([], []) for record in found}
        columns = (answers.c.round_id, answers.c.holder, answers.c.kind, answers.c.manifest_hash, answers.c.problem)
        query = select(*columns, answers.c.detail, answers.c.received).where(answers.c.round_id.in_(said))
        async with self.database.read() as connection:
            for row in (await connection.execute(query)).mappings():
                said[row["round_id"]][0].append(answer_record(row))
            released = select(shares).where(shares.c.round_id.in_(said))
            for share in await connection.execute(released):
                said[share.round_id][1].append(ShareRecord(share.holder, "", share.blob, share.received))
        return said

    async def statuses(self, task: Task, records: Sequence[RoundRecord]) -> list[RoundStatus]:
        """Rounds with what their key holders said."""
        said = await self._said_about(records)
        return [record.status(committee_status(task, record, *said[record.id])) for record in records]

    async def waiting(self, task: Task) -> dict[str, tuple[Waiting, ...]]:
        """The rounds that wait for each of a task's holders, and for what."""
        asked = (
            select(rounds.c.id, rounds.c.number, rounds.c.state, rounds.c.manifest_hash)
            .where(rounds.c.task_hash == task.id, rounds.c.state.in_(("closed", "opening")), rounds.c.manifest != "")
            .order_by(rounds.c.number)
        )
        found: dict[str, tuple[Waiting, ...]] = {entry.name: () for entry in task.config.committee.holders}
        async with self.database.read() as connection:
            live = (await connection.execute(asked)).all()
            if not live:
                return found
            ids, manifests = [one.id for one in live], [one.manifest_hash for one in live]
            about = answers.c.round_id.in_(ids) & answers.c.manifest_hash.in_(manifests)
            told = select(answers.c.round_id, answers.c.holder, answers.c.kind).where(about)
            said = (await connection.execute(told)).all()
            released = select(shares.c.round_id, shares.c.holder).where(shares.c.round_id.in_(ids))
            opened = (await connection.execute(released)).all()
        for one in live:
            mine = [row for row in said if row.round_id == one.id]
            stage = stage_of(one.state, sum(row.kind == "vote" for row in mine), task.committee.agreement)
            done = {row.holder for row in mine if row.kind == DONE[stage]}
            done.update(row.holder for row in opened if row.round_id == one.id)
            for holder in found.keys() - done:
                found[holder] += (Waiting(one.number, stage),)
        return found
