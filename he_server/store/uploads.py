"""Resumable uploads: begun, then ended once, by a receipt or by a refusal that is repeated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party
from he_protocol.problems import NOT_FOUND, UPLOAD_EXPIRED
from he_server.rules.uploads import check_cap, check_promised
from he_server.store.engine import Database
from he_server.store.schema import uploads
from he_server.store.transitions import lock_task


@dataclass(frozen=True)
class UploadRecord:
    """One upload of `length` bytes. `receipt` and `round`, or `problem` (a problem document), say how it ended."""

    id: str
    task_hash: str
    update_id: str
    client: str
    public: str
    length: int
    created: float
    expires: float
    receipt: str = ""
    round: int = 0
    problem: str = ""

    @property
    def ended(self) -> bool:
        return bool(self.receipt or self.problem)

    @property
    def party(self) -> Party:
        """The party that began it."""
        return Party(self.client, "client", bytes.fromhex(self.public))


@dataclass(frozen=True)
class UploadStore:
    """State changes and reads of `uploads`."""

    database: Database

    async def begin(self, new: UploadRecord, cap: int, free_bytes: int) -> UploadRecord:
        """Begin an upload; one that the client began before for the same update is given instead.

        `cap` is how many unfinished ones a client may have in a task, `free_bytes` how many bytes all unfinished ones
        may have together. Raises `too-many-uploads` or `overloaded`.
        """
        same = select(uploads).where(
            uploads.c.task_hash == new.task_hash,
            uploads.c.client == new.client,
            uploads.c.public == new.public,
            uploads.c.update_id == new.update_id,
            uploads.c.length == new.length,
            uploads.c.problem == "",
            uploads.c.expires > new.created,
        )
        mine = and_(uploads.c.task_hash == new.task_hash, uploads.c.client == new.client, _unfinished())
        async with self.database.write() as connection:
            await lock_task(connection, new.task_hash)
            before = (await connection.execute(same)).first()
            if before is not None:
                return _record(before)
            count = await connection.execute(select(func.count()).where(mine, uploads.c.expires > new.created))
            check_cap(count.scalar_one(), cap)
            check_promised((await connection.execute(_UNFINISHED_BYTES)).scalar_one() + new.length, free_bytes)
            await connection.execute(insert(uploads).values(asdict(new)))
            return new

    async def get(self, upload_id: str, now: float) -> UploadRecord:
        """Raises `not-found` or `upload-expired`."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(uploads).where(uploads.c.id == upload_id))).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, "no such upload")
        if row.expires <= now:
            raise ProblemError(UPLOAD_EXPIRED, "begin a new one")
        return _record(row)

    async def end(self, ended: UploadRecord) -> None:
        """Record how an upload ended. Raises `not-found` when it is gone, or ended before."""
        query = update(uploads).where(uploads.c.id == ended.id, _unfinished())
        async with self.database.write() as connection:
            done = await connection.execute(
                query.values(receipt=ended.receipt, round=ended.round, problem=ended.problem)
            )
            if done.rowcount != 1:
                raise ProblemError(NOT_FOUND, "no such unfinished upload")

    async def drop(self, upload_id: str) -> None:
        """Forget an upload; its bytes have to be gone before."""
        async with self.database.write() as connection:
            await connection.execute(delete(uploads).where(uploads.c.id == upload_id))

    async def expired(self, now: float) -> tuple[str, ...]:
        """Ids of the uploads whose time has passed, however they ended."""
        async with self.database.read() as connection:
            return tuple((await connection.execute(select(uploads.c.id).where(uploads.c.expires <= now))).scalars())

    async def unfinished_bytes(self) -> int:
        """Bytes that the uploads under way may take when all of them arrive."""
        async with self.database.read() as connection:
            return int((await connection.execute(_UNFINISHED_BYTES)).scalar_one())


def _unfinished() -> ColumnElement[bool]:
    return and_(uploads.c.receipt == "", uploads.c.problem == "")


_UNFINISHED_BYTES = select(func.coalesce(func.sum(uploads.c.length), 0)).where(_unfinished())


def _record(row: Row[Any]) -> UploadRecord:
    return UploadRecord(**row._asdict())
