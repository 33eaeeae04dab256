"""Prometheus metrics, in a registry of their own per application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest


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

    def observe_stages(self, seconds: dict[str, float]) -> None:
        """Record stages that a round went through."""
        for stage, spent in seconds.items():
            self.stages.labels(stage).observe(spent)

    def render(self) -> bytes:
        """The exposition format, text version 0.0.4."""
        return generate_latest(self.registry)
