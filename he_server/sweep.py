"""Removing bytes that nothing needs any longer."""

from __future__ import annotations

from he_server.names import SHARES, TOTALS, UPDATES, share_blob, total_blob, update_blob
from he_server.server import Server


async def drop_round(server: Server, round_id: int) -> None:
    """Delete what clients and holders sent for a round that has ended."""
    gone = [update_blob(update.blob) for update in await server.store.updates_of(round_id)]
    gone += [share_blob(share.blob) for share in await server.store.shares_of(round_id)]
    for name in [*gone, total_blob(round_id)]:
        await server.thread(server.blobs.delete, name)


async def sweep(server: Server, older_than: float) -> None:
    """Delete what crashes left behind more than `older_than` seconds ago: partial files, and bytes without
    a row of a round that still needs them."""
    await server.thread(server.blobs.drop_partials, older_than)
    found: list[str] = []
    for folder in (UPDATES, SHARES, TOTALS):
        found += await server.thread(server.blobs.names, folder, older_than)
    if not found:
        return
    blobs = await server.store.live_blobs()
    needed = {update_blob(blob) for blob in blobs} | {share_blob(blob) for blob in blobs}
    needed |= {total_blob(record.id) for record in await server.store.live_rounds()}
    for name in found:
        if name not in needed:
            await server.thread(server.blobs.delete, name)
