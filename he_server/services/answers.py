"""What a round shows its key holders, and what they say about it."""

from __future__ import annotations

from he_protocol.identity.credentials import Party
from he_protocol.task import Task
from he_server.rules.answers import read_answer
from he_server.rules.records import RoundRecord, UpdateRecord
from he_server.services.context import ServerContext
from he_server.store.answers import AnswerStore
from he_server.store.updates import UpdateStore


async def accept_answer(server: ServerContext, task: Task, record: RoundRecord, party: Party, token: str) -> bool:
    """Keep a holder's screening, vote or objection; False for the same again.

    Raises what `read_answer` raises, and `wrong-state` when the round does not wait for it.
    """
    said = await server.threads.run(read_answer, task, record, token, party, server.clock())
    created = await server.store.answers.add(task, record, said)
    if created:
        server.news.heard(task.id)
    return created


async def votes_for(store: AnswerStore, record: RoundRecord) -> tuple[str, ...]:
    """The votes for a round's manifest as it is now."""
    said = await store.of_round(record.id)
    return tuple(a.token for a in said if a.kind == "vote" and a.manifest_hash == record.manifest_hash)


async def listed_updates(store: UpdateStore, record: RoundRecord) -> list[UpdateRecord]:
    """The updates in a round's manifest, in its order."""
    out = {one.update for one in record.excluded}
    return [update for update in await store.of_round(record.id) if update.update_id not in out]
