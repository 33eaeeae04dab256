"""Versions of the models: every one that was published, and the initial one as version 0."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND
from he_server.rules.records import ModelRecord
from he_server.store.engine import Database
from he_server.store.schema import models


@dataclass(frozen=True)
class ModelStore:
    """Reads of `models`."""

    database: Database

    async def get(self, task: str, version: int | None = None) -> ModelRecord:
        """One version of the model, the newest by default. Raises `not-found`."""
        async with self.database.read() as connection:
            return await model_of(connection, task, version)


async def model_of(connection: AsyncConnection, task: str, version: int | None = None) -> ModelRecord:
    """One version of a task's model, the newest by default. Raises `not-found`."""
    query = select(models).where(models.c.task_hash == task).order_by(models.c.version.desc()).limit(1)
    if version is not None:
        query = query.where(models.c.version == version)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise ProblemError(NOT_FOUND, "no such model version", got="newest" if version is None else version)
    return ModelRecord(row.version, row.round_id, row.sha256)


async def publish_again(connection: AsyncConnection, task: str, before: ModelRecord, version: int, now: float) -> None:
    """Publish a model again, under another version, without a round that it comes from."""
    again = {"task_hash": task, "version": version, "round_id": None, "sha256": before.sha256, "created": now}
    await connection.execute(insert(models).values(again))
