"""The server's state: one named method, and one transaction, per state change."""

from __future__ import annotations

from he_server.store.answers import AnswerStore
from he_server.store.audit import AuditStore
from he_server.store.folding import FoldingStore
from he_server.store.revocations import RevocationStore
from he_server.store.rounds import RoundStore
from he_server.store.status import StatusStore
from he_server.store.tasks import TaskStore
from he_server.store.updates import UpdateStore
from he_server.store.uploads import UploadStore


class Store(
    TaskStore,
    UpdateStore,
    UploadStore,
    FoldingStore,
    RoundStore,
    AnswerStore,
    StatusStore,
    RevocationStore,
    AuditStore,
):
    """Everything that the server remembers, over one SQLAlchemy async engine."""
