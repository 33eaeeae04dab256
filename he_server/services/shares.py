"""A key holder's share from its frame into its round: checked, made durable, recorded."""

from __future__ import annotations

from functools import partial

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party, check_signed
from he_protocol.messages import Share
from he_protocol.problems import NOT_CERTIFIED, REQUEST_TIMEOUT
from he_protocol.task import Task
from he_server.blobs.keys import fresh, share_blob
from he_server.rules.committee import Member
from he_server.rules.records import RoundRecord
from he_server.rules.shares import check_share
from he_server.services.answers import votes_for
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.receive import BodySection, keep_or_delete, receive


async def accept_share(
    server: ServerContext, task: Task, record: RoundRecord, member: Member, party: Party, frame: Frame
) -> bool:
    """Check a frame that a member of the committee sent and record its share; False for the same again.

    Raises whatever is wrong with it, `not-certified` before enough holders have voted for the round's manifest.
    """
    token = await frame.token()
    share = check_signed(token, Share, party, "holder")
    if await server.store.shares.has(record.id, share.holder, token):
        return False
    await server.threads.run(check_share, task, record, member, share)
    if len(await votes_for(server.store.answers, record)) < task.committee.agreement:
        raise ProblemError(NOT_CERTIFIED, "shares come after votes", expected=f"{task.committee.agreement} votes")
    layout = task.scheme.share_layout(task.length)
    blob = fresh()
    name = share_blob(blob)
    sections = [
        BodySection(f"subshare {entry.subshare} of bucket {entry.bucket}", name, layout.size, entry.sha256, layout)
        for entry in share.vectors
    ]
    await receive(server, frame, sections)
    async with keep_or_delete(server, name):
        check = partial(server.threads.run, server.blobs.check_kept, [name], REQUEST_TIMEOUT)
        kept = check if sections else _nothing_to_keep
        created = await server.store.shares.add(task, share, token, blob, server.clock(), kept)
    if created:
        server.news.heard(task.id)
    else:
        await server.threads.run(server.blobs.delete, name)
    return created


async def _nothing_to_keep() -> None:
    """A share that leaves every bucket closed has no bytes."""
