"""Garbage collection: deletes unreferenced blobs."""

from __future__ import annotations

import asyncio

from he_server.blobs.keys import (
    ACCUMULATORS,
    BOARD,
    KEYS,
    MODELS,
    SHARES,
    TOTALS,
    UPDATES,
    accumulator_blob,
    key_blob,
    share_blob,
    total_blob,
    update_blob,
)
from he_server.blobs.store import BlobStore
from he_server.services.context import ServerContext
from he_server.services.receive import delete_blobs
from he_server.store import Store

ROUND_FOLDERS = (UPDATES, KEYS, ACCUMULATORS, SHARES, TOTALS)
"""Folders of blobs that belong to rounds under way, and to nothing else."""
TASK_FOLDERS = (MODELS, BOARD)
"""Folders with one of each task's in them, for what stays."""


async def drop_round(server: ServerContext, round_id: int) -> None:
    """Delete the blobs of a round that has ended: updates, accumulators, shares and totals."""
    gone = set()
    for update in await server.store.updates.of_round(round_id):
        gone |= {update_blob(update.blob), key_blob(update.blob), total_blob(round_id, update.bucket)}
    gone |= {accumulator_blob(item.blob) for item in await server.store.folding.accumulators(round_id)}
    gone |= {share_blob(share.blob) for share in await server.store.shares.of_round(round_id)}
    await delete_blobs(server, gone)


async def collect_garbage(server: ServerContext, older_than: float) -> None:
    """Delete what crashes left behind more than `older_than` seconds ago: partial files, and bytes without
    a row of a round that still needs them. Resumable uploads go when they expire."""
    await server.threads.run(server.blobs.drop_partials, older_than)
    for upload in await server.store.uploads.expired(server.clock()):
        await server.threads.run(server.uploads.delete, upload)
        await server.store.uploads.drop(upload)
    if not await orphans(server.blobs, server.store, older_than):
        return
    async with server.store.database.alone():  # a delayed transaction may be about to refer to one of them
        for name in await orphans(server.blobs, server.store, older_than):
            await server.threads.run(server.blobs.delete, name)


async def orphans(blobs: BlobStore, store: Store, older_than: float) -> list[str]:
    """BlobStore last written more than `older_than` seconds ago that no round, or no task, needs (any longer)."""
    found: list[str] = []
    for folder in ROUND_FOLDERS:
        found += await asyncio.to_thread(blobs.names, folder, older_than)
    needed = await store.references.of_rounds() if found else frozenset()
    kept: list[str] = []
    for folder in TASK_FOLDERS:
        for task in await asyncio.to_thread(blobs.names, folder, 0.0):
            kept += await asyncio.to_thread(blobs.names, task, older_than)
    needed |= await store.references.of_tasks() if kept else frozenset()
    return [name for name in found + kept if name not in needed]
