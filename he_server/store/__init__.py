"""The server's state: one named method, and one transaction, per state change."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from he_server.store.answers import AnswerStore
from he_server.store.audit import AuditStore
from he_server.store.board import BoardStore
from he_server.store.engine import Database
from he_server.store.folding import FoldingStore
from he_server.store.models import ModelStore
from he_server.store.references import ReferenceStore
from he_server.store.revocations import RevocationStore
from he_server.store.rounds import RoundStore
from he_server.store.shares import ShareStore
from he_server.store.status import StatusStore
from he_server.store.tasks import TaskStore
from he_server.store.updates import UpdateStore
from he_server.store.uploads import UploadStore


class Store:
    """Everything that the server remembers, a part for each kind of thing; all parts share one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.database = Database(engine)
        self.tasks = TaskStore(self.database)
        self.models = ModelStore(self.database)
        self.board = BoardStore(self.database)
        self.updates = UpdateStore(self.database)
        self.uploads = UploadStore(self.database)
        self.folding = FoldingStore(self.database)
        self.rounds = RoundStore(self.database)
        self.answers = AnswerStore(self.database)
        self.shares = ShareStore(self.database)
        self.status = StatusStore(self.database)
        self.references = ReferenceStore(self.database)
        self.revocations = RevocationStore(self.database)
        self.audit = AuditStore(self.database)

    async def close(self) -> None:
        """Close all connections to the database."""
        await self.database.close()
