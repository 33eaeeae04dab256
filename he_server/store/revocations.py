"""Revocation lists: the newest counts, and stays the newest."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from he_protocol.errors import ProblemError
from he_protocol.identity.revocation import Revocations, check_newer
from he_protocol.problems import OLD_REVOCATIONS
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.schema import revocations


@dataclass(frozen=True)
class RevocationStore:
    """State changes and reads of `revocations`."""

    database: Database

    async def learn(self, offered: Revocations, now: float) -> bool:
        """Replace the stored list by a verified one; False for the same one again.

        Raises `old-revocations`.
        """
        newest = select(revocations).order_by(revocations.c.number.desc()).limit(1)
        try:
            async with self.database.write() as connection:
                row = (await connection.execute(newest)).one_or_none()
                if row is not None:
                    check_newer(Revocations(row.number, token=row.token), offered)
                    if row.number == offered.number:
                        return False
                values = {"number": offered.number, "token": offered.token, "received": now}
                await connection.execute(insert(revocations).values(values))
                await connection.execute(delete(revocations).where(revocations.c.number < offered.number))
                said = {"number": offered.number, "keys": len(offered.keys)}
                await audit.append(connection, "keys-revoked", "", 0, **said)
                return True
        except IntegrityError:
            raise ProblemError(OLD_REVOCATIONS, f"list {offered.number} came at the same time; try again") from None

    async def newer(self, number: int) -> str:
        """The newest list (JWS) if its number is above `number`, else nothing."""
        query = select(revocations.c.token).where(revocations.c.number > number)
        async with self.database.read() as connection:
            found = await connection.execute(query.order_by(revocations.c.number.desc()).limit(1))
            return found.scalar_one_or_none() or ""
