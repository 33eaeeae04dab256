"""The server's state: one named method, and one transaction, per state change."""

from __future__ import annotations

from he_server.store.rounds import RoundStore
from he_server.store.tasks import TaskStore
from he_server.store.updates import UpdateStore


class Store(TaskStore, UpdateStore, RoundStore):
    """Everything that the server remembers, over one SQLAlchemy async engine."""
