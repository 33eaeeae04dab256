"""The board of a key ceremony: a post from its frame onto the board."""

from __future__ import annotations

from he_protocol.documents import BoardEntry
from he_protocol.identity.credentials import Party
from he_protocol.task import Task
from he_server.blobs.keys import fresh, post_blob
from he_server.rules.board import POST_LIMIT, read_post
from he_server.rules.records import PostRecord
from he_server.rules.updates import check_binding
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.receive import keep_body, keep_or_delete
from he_server.store.board import check_same_post


async def accept_post(
    server: ServerContext, task: Task, phase: str, party: Party, frame: Frame
) -> tuple[BoardEntry, bool]:
    """Check a frame that a member of the committee sent and put it on the board; False for the same again.

    Raises whatever is wrong with it, `not-found` for a phase that the task's ceremony does not have, or
    `ceremony-conflict` when the holder posted something else before.
    """
    token = await frame.token()
    message = read_post(task, phase, token, party)
    check_binding(task, message.task_hash, message.epoch)
    before = [post for post in await server.store.board.posts(task.id, phase) if post.holder == party.name]
    if before:
        check_same_post(before[0].message, token, phase)
        return BoardEntry(party.name, token, before[0].size), False
    blob = fresh()
    name = post_blob(task.id, blob)
    post = PostRecord(party.name, token, await keep_body(server, frame, name, POST_LIMIT), blob)
    async with keep_or_delete(server, name):
        created = await server.store.board.add(task.id, phase, post)
    if not created:
        await server.threads.run(server.blobs.delete, name)
    return BoardEntry(post.holder, token, post.size), created
