"""A federated task as its authority signed it, and everything that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from he_protocol.aggregation.metrics import Reports
from he_protocol.aggregation.weighting import Weighting
from he_protocol.committee import Committee
from he_protocol.config import TaskConfig
from he_protocol.identity.jws import payload_hash, verify
from he_protocol.privacy.rotation import Rotation
from he_protocol.schemes.scheme import Scheme, Section
from he_protocol.sharing import Sharing
from he_protocol.tensors import MODEL_HEADER_BYTES


@dataclass(frozen=True)
class Task:
    """A checked task configuration. `token` is the authority's JWS, `hash` the SHA-256 of its payload."""

    config: TaskConfig
    token: str
    hash: bytes

    @classmethod
    def from_token(cls, token: str, authority: bytes) -> Task:
        """Verify and check a signed `TaskConfig`; raises the refusal that names what is wrong."""
        task = cls(verify(token, TaskConfig, authority), token, payload_hash(token))
        task.config.check()
        return task

    @property
    def id(self) -> str:
        """The task's hash in hex: its name in URLs."""
        return self.hash.hex()

    @property
    def epoch_id(self) -> bytes:
        """What an epoch's public polynomials are derived from, and envelopes are bound to."""
        return self.hash + self.config.epoch.to_bytes(8, "little")

    @cached_property
    def scheme(self) -> Scheme:
        return self.config.encryption.load()

    @cached_property
    def weighting(self) -> Weighting:
        return self.config.aggregation.load_weighting()

    @cached_property
    def reports(self) -> Reports:
        return self.config.reports

    @cached_property
    def rotation(self) -> Rotation | None:
        """What turns an update before it is quantised, if the task has one."""
        return Rotation(self.parameters, self.epoch_id) if self.config.aggregation.rotation else None

    @cached_property
    def sharing(self) -> Sharing:
        return self.config.committee.sharing

    @cached_property
    def committee(self) -> Committee:
        return self.config.committee.numbers

    @property
    def parameters(self) -> int:
        """Model parameters: d."""
        return self.config.model.parameters

    @property
    def length(self) -> int:
        """Coordinates that travel: d, those of the metrics, and those that the weighting appends."""
        return self.config.length

    @cached_property
    def body(self) -> tuple[Section, ...]:
        return self.scheme.body(self.length, self.sharing)

    @property
    def model_limit(self) -> int:
        """Bytes of the largest model file: float32 values and a header."""
        return 4 * self.parameters + MODEL_HEADER_BYTES

    @property
    def sum_limit(self) -> int:
        """Bytes of the largest file of an opened sum: int64 values and a header."""
        return 8 * self.length + MODEL_HEADER_BYTES

    def section(self, role: Literal["sum", "key"]) -> Section:
        """The section that the server sums, or the one that key holders work on."""
        return next(section for section in self.body if section.role == role)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the integer noise that each client adds."""
        return self.config.sum_plan.noise_std(self.config.encryption.scale)

    def holder_index(self, name: str) -> int | None:
        """A holder's number in the sharing, or None for a stranger."""
        return next((i for i, holder in enumerate(self.config.committee.holders) if holder.name == name), None)
