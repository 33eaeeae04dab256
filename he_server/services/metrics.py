"""Prometheus metrics, in a registry of their own per application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from he_protocol.errors import ProblemError
from he_server.rules.admission import Load
from he_server.services.backpressure import AdmissionController
from he_server.services.revocations import RevocationCache
from he_server.store import Store
from he_server.store.status import ServerStatus


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hushsum_requests",
            "HTTP requests by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "hushsum_request_seconds", "Time to answer", ["method", "route"], registry=self.registry
        )
        self.refused = Counter(
            "hushsum_refusals", "Refused requests by problem", ["route", "problem"], registry=self.registry
        )
        self.updates = Counter("hushsum_updates", "Updates by outcome", ["outcome"], registry=self.registry)
        self.received = Counter("hushsum_received_bytes", "Bytes of frames' bodies received", registry=self.registry)
        self.rounds = Counter(
            "hushsum_rounds", "Rounds by final state and problem", ["state", "problem"], registry=self.registry
        )
        self.stages = Histogram(
            "hushsum_stage_seconds",
            "Time that a round spends in each stage",
            ["stage"],
            buckets=(0.01, 0.1, 1, 10, 60, 300, 1800, 7200, 86400),
            registry=self.registry,
        )

        self.database_up = self._gauge("database_up", "Whether the database answered this scrape")
        self.arriving = self._gauge("arriving_bytes", "Bytes of uploads under way in this process")
        self.uploads = self._gauge("uploads", "Uploads under way in this process")
        self.unfolded = self._gauge("unfolded_bytes", "Bytes of acknowledged updates that no running sum holds yet")
        self.free = self._gauge("disk_free_bytes", "Bytes free where blobs live")
        self.live = Gauge("hushsum_live_rounds", "Rounds that have not ended", ["state"], registry=self.registry)
        self.oldest = self._gauge("oldest_round_age_seconds", "Age of the oldest live round that has updates")
        self.overdue = self._gauge("overdue_rounds", "Live rounds whose deadline has passed")
        self.stuck = self._gauge("expired_leases", "Leases that ran out before they were given back")
        self.audited = self._gauge("audit_entries", "Entries of the audit log")
        self.revocations = self._gauge(
            "revocations_valid_until_seconds", "Unix time when the revocation list expires; infinite without a list"
        )
        self.fold = Histogram(
            "hushsum_fold_seconds",
            "Time to fold a batch of updates into a running sum and checkpoint it",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self.leases_lost = Counter(
            "hushsum_leases_lost", "Leases that ran out under a worker that still worked", registry=self.registry
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"hushsum_{name}", text, registry=self.registry)

    def show(self, load: Load, status: ServerStatus, now: float, audited: int, valid_until: float) -> None:
        """Set the gauges. Times are Unix seconds."""
        self.arriving.set(load.arriving)
        self.uploads.set(load.uploads)
        self.unfolded.set(load.unfolded)
        self.free.set(load.free)
        for state, count in status.rounds.items():
            self.live.labels(state).set(count)
        self.oldest.set(max(0.0, now - status.oldest) if status.oldest else 0.0)
        self.overdue.set(status.overdue)
        self.stuck.set(status.stuck)
        self.audited.set(audited)
        self.revocations.set(valid_until)

    def observe_stages(self, seconds: dict[str, float]) -> None:
        """Record stages that a round went through."""
        for stage, spent in seconds.items():
            self.stages.labels(stage).observe(spent)

    def render(self) -> bytes:
        """The exposition format, text version 0.0.4."""
        return generate_latest(self.registry)


async def exposition(
    metrics: Metrics, store: Store, admission: AdmissionController, revocations: RevocationCache, now: float
) -> bytes:
    """The metrics as they are `now`; also while the database is down, when they matter most."""
    try:
        seq, _ = await store.audit.head()
        load, status = await admission.load(), await store.status.summary(now)
        metrics.show(load, status, now, seq, (await revocations.current()).valid_until)
        metrics.database_up.set(1)
    except ProblemError:
        metrics.database_up.set(0)
    return metrics.render()
