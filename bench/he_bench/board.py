"""The committee's bulletin board in memory: what a client fetches before it can encrypt, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from he_bench.parties import Parties
from he_holder.ceremony import messages
from he_party.transport import Answer, Piece, Transport
from he_protocol import documents, paths
from he_protocol.task import Task


class CommitteeBoard(Transport):
    """Answers GETs of the confirmations and of the joint key, and nothing else."""

    def __init__(self, task: Task, parties: Parties, joint_key: bytes) -> None:
        super().__init__("memory:", parties.client(1))
        posts = []
        for index, holder in enumerate(parties.holders):
            message = holder.key.sign(messages.confirm(task, index, bytes(32), joint_key))
            posts.append(documents.BoardEntry(holder.name, message, 0))
        self._documents = {
            paths.board_path(task.id, "confirmation"): msgspec.json.encode(
                documents.Board("confirmation", tuple(posts))
            ),
            paths.post_path(task.id, "confirmation", parties.holders[0].name): joint_key,
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
