"""What a server process is made of: one part for each concern, put together here and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from he_party.keyfile import KeyRecord
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.blobs.local import LocalBlobs
from he_server.blobs.store import BlobStore, UploadStore
from he_server.blobs.upload_file import LocalUploads
from he_server.rules.admission import Limits
from he_server.services.backpressure import AdmissionController, measure
from he_server.services.cached import Cached
from he_server.services.commit_updates import UpdateCommitter
from he_server.services.connections import ConnectionLimiter, ConnectionLimits
from he_server.services.drain import Drain
from he_server.services.metrics import Metrics, exposition
from he_server.services.news import News
from he_server.services.replay import ReplayCache
from he_server.services.revocations import RevocationCache
from he_server.services.strangers import BodyBudget, RateLimiter
from he_server.services.task_cache import TaskCache
from he_server.services.threads import Threads
from he_server.settings import Settings
from he_server.store import Store
from he_server.store.engine import make_engine

PROBE_SECONDS, METRICS_SECONDS = 1.0, 0.2
"""How old the last look at the disk, and the metrics, may be."""


@dataclass(frozen=True)
class ServerKeys:
    """The server's own key, and the authority's Ed25519 public key."""

    own: KeyRecord = field(repr=False)
    authority: bytes


class ServerContext:
    """The parts, which know nothing of this object. `clock` gives Unix seconds.

    `worker` is the worker's loop where this process has one, `adding` the tasks whose initial model is being written.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        uploads: UploadStore,
        keys: ServerKeys,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.store = store
        self.blobs = blobs
        self.uploads = uploads
        self.keys = keys
        self.clock = clock
        self.threads = threads = Threads()
        self.tasks = tasks = TaskCache(store.tasks, keys.authority, threads)
        self.revocations = RevocationCache(store.revocations, keys.authority, threads, clock)
        self.replays = ReplayCache()
        self.committer = UpdateCommitter(store.updates, blobs, threads, clock)
        self.news = News(store, tasks, settings.max_streams, settings.max_streams_per_party)
        self.admission = AdmissionController(
            Limits(
                settings.ingest_bytes,
                settings.min_free_bytes,
                settings.max_uploads,
                settings.max_uploads_per_client,
                settings.max_wait,
            ),
            partial(measure, store.status, tasks, blobs),
        )
        self.connections = ConnectionLimiter(
            ConnectionLimits(
                settings.max_connections, settings.max_connections_per_address, settings.max_connections_per_party
            )
        )
        self.stranger_requests = RateLimiter(settings.stranger_rate)
        self.stranger_bodies = BodyBudget()
        self.metrics = Metrics()
        self.exposition = Cached(
            lambda: exposition(self.metrics, store, self.admission, self.revocations, clock()), METRICS_SECONDS
        )
        self.probe = Cached(lambda: threads.run(blobs.probe), PROBE_SECONDS)
        self.drain = Drain()
        self.worker: asyncio.Task[None] | None = None
        self.adding: set[str] = set()


def open_server(settings: Settings, clock: Callable[[], float] = time.time) -> ServerContext:
    """Everything that an application needs, from its settings; nothing is served yet.

    Raises `bad-settings`, `bad-key-file` or `disk-full`.
    """
    keys, blobs = ServerKeys(settings.read_key(), settings.read_authority()), open_blobs(settings)
    try:
        blobs.prepare()
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"data_dir cannot be used: {error}") from None
    uploads = LocalUploads(settings.data_dir / "uploads")
    return ServerContext(settings, Store(make_engine(settings.database)), blobs, uploads, keys, clock)


def open_blobs(settings: Settings) -> BlobStore:
    """Where this server's blobs lie; not prepared yet."""
    return LocalBlobs(settings.data_dir / "blobs")
