"""The committee's bulletin board in memory: what a client fetches before it can seal, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench.parties import Parties
from he_client.transport import Answer, Piece, Transport
from he_protocol import api
from he_protocol.task import Task
from keys import ceremony


class CommitteeBoard(Transport):
    """Answers GETs of the confirmations and of the joint key, and nothing else."""

    def __init__(self, task: Task, parties: Parties, joint_key: bytes) -> None:
        super().__init__("memory:", parties.client(1))
        posts = []
        for index, holder in enumerate(parties.holders):
            message = holder.key.sign(ceremony.confirm(task, index, bytes(32), joint_key))
            posts.append(api.BoardEntry(holder.name, message, 0))
        self._documents = {
            api.board_path(task.id, "confirmation"): msgspec.json.encode(api.Board("confirmation", tuple(posts))),
            api.post_path(task.id, "confirmation", parties.holders[0].name): joint_key,
        }

    async def request(
        self,
        method: str,
        path: str,
        *,
        audience: str = "",
        pieces: Sequence[Piece] = (),
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        limit: int = 1 << 28,
        wait: int = 0,
    ) -> Answer:
        return Answer(200, self._documents[path], {})
