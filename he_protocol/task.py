"""A federated task: what the authority signs, and everything that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Literal

from msgspec import Meta

from he_protocol import envelope
from he_protocol.committee import Committee, check_collusion
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import check_public, payload_hash, verify
from he_protocol.messages import Count, Digest, HpkeKey, Key32, Message, Name, Positive, PositiveFloat
from he_protocol.privacy import plan
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.problems import BAD_PLAN, FINGERPRINT_MISMATCH
from he_protocol.schemes.registry import load_scheme
from he_protocol.schemes.scheme import Scheme, Section
from he_protocol.sharing import Sharing
from he_protocol.sum_bounds import SumPlan

MAX_LENGTH = 1 << 30
MAX_VECTORS = 1024
"""Of one holder's share: their digests must fit into the head of a frame."""
HASH_DIGITS = 64
MODEL_HEADER_BYTES = 1024 * 1024
"""Bytes that a model file, or an opened sum, may have on top of its values."""
ROBUST_BUCKETS = 3
"""With fewer, a median is a mean."""


class TensorSpec(Message, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    shape: Annotated[tuple[Positive, ...], Meta(max_length=32)]

    @property
    def size(self) -> int:
        return prod(self.shape)


class Optimiser(Message, frozen=True):
    """Server-side step: model += learning_rate * velocity, velocity = momentum * velocity + mean."""

    learning_rate: PositiveFloat = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class ServerEntry(Message, frozen=True):
    name: Name
    key: Key32


class HolderEntry(Message, frozen=True):
    name: Name
    key: Key32
    hpke: HpkeKey


class TaskConfig(Message, frozen=True):
    """One federated training job.

    weighting: "uniform" divides an opened sum by the number of updates; "examples" by the summed
    weights (each at most `weight_cap` examples), which travel inside the ciphertext; "fixed" by
    `weight_cap` (for DP-FedSGD: the expected number of sampled records over all clients). No coordinate of a published
    mean exceeds what honest updates can come to: `value_range`; with "fixed", value_range * max_clients / weight_cap.
    buckets: the most disjoint buckets that a round's updates are split into, of at least `min_clients` each,
    opened apart, so that one poisoned update costs its bucket and not the round. combination: of the buckets'
    means, coordinate by coordinate; "mean" is that of all updates, "trimmed-mean" leaves out a quarter of the buckets
    (rounded down, at least one) at each end.
    threshold, agreement: key holders that open a sum, and that must have voted for it before; see `Committee`.
    allow_no_collusion: the committee may be one that a single colluding holder breaks.
    update_lifetime: how old an update, and a manifest, may be at most when key holders vote, in seconds.
    initial_model: SHA-256 of version 0, as safetensors without metadata.
    """

    name: Name
    scheme: Name
    profile: Name
    fingerprint: Digest
    epoch: Count
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    scale: PositiveFloat
    value_range: PositiveFloat
    privacy: PrivacyPlan
    min_clients: Positive
    max_clients: Positive
    collect_seconds: Positive
    opening_seconds: Positive
    staleness: Count
    max_openings: Positive
    server: ServerEntry
    holders: Annotated[tuple[HolderEntry, ...], Meta(min_length=1)]
    threshold: Positive
    agreement: Positive
    initial_model: Digest
    allow_no_collusion: bool = False
    update_lifetime: Positive = 30 * 86_400
    weighting: Literal["uniform", "examples", "fixed"] = "uniform"
    weight_cap: PositiveFloat = 1.0
    buckets: Positive = 1
    combination: Literal["mean", "median", "trimmed-mean"] = "mean"
    optimiser: Optimiser = Optimiser()


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
        check_config(task.config)
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
        return load_scheme(self.config.scheme, self.config.profile)

    @cached_property
    def sharing(self) -> Sharing:
        return Sharing(len(self.config.holders), self.config.threshold)

    @cached_property
    def committee(self) -> Committee:
        return committee_of(self.config)

    @property
    def parameters(self) -> int:
        """Model parameters: d."""
        return sum(spec.size for spec in self.config.tensors)

    @property
    def length(self) -> int:
        """Coordinates that travel: d, and one more where a weight is appended."""
        return self.parameters + (self.config.weighting == "examples")

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
        return sum_plan(self.config).noise_std(self.config.scale)

    def holder_index(self, name: str) -> int | None:
        """A holder's number in the sharing, or None for a stranger."""
        return next((i for i, holder in enumerate(self.config.holders) if holder.name == name), None)


def check_config(config: TaskConfig) -> None:
    """Refuse a configuration whose parts do not fit together.

    Raises `wrong-scheme`, `fingerprint-mismatch`, `bad-committee`, `bad-plan`, `sum-could-wrap`, or `malformed` for a
    key that is none.
    """
    if looks_like_hash(config.name):
        raise ProblemError(BAD_PLAN, "the name looks like a task's hash", expected="a name", got=config.name)
    scheme = load_scheme(config.scheme, config.profile)
    if config.fingerprint != scheme.profile.fingerprint:
        raise ProblemError(
            FINGERPRINT_MISMATCH,
            f"profile {config.profile} has other parameters here",
            expected=config.fingerprint.hex(),
            got=scheme.profile.fingerprint.hex(),
        )
    check_collusion(committee_of(config), config.allow_no_collusion)
    sharing = Sharing(len(config.holders), config.threshold)
    if (vectors := config.buckets * len(sharing.subshares_of(0))) > MAX_VECTORS:
        raise ProblemError(
            BAD_PLAN, "too many buckets for one share", expected=f"at most {MAX_VECTORS} vectors", got=vectors
        )
    for values, what in (
        ([holder.name for holder in config.holders], "holder names"),
        ([holder.key for holder in config.holders], "holder keys"),
        ([spec.name for spec in config.tensors], "tensor names"),
    ):
        if len(set(values)) != len(values):
            raise ProblemError(BAD_PLAN, f"{what} must differ")
    check_keys(config.server, config.holders)
    length = sum(spec.size for spec in config.tensors) + (config.weighting == "examples")
    if length > MAX_LENGTH:
        raise ProblemError(BAD_PLAN, "the model is too large", expected=f"at most {MAX_LENGTH} parameters", got=length)
    if (needed := config.buckets * config.min_clients) > config.max_clients:
        raise ProblemError(
            BAD_PLAN, "buckets * min_clients exceeds max_clients", got=f"{needed} > {config.max_clients}"
        )
    if config.combination != "mean" and config.buckets < ROBUST_BUCKETS:
        raise ProblemError(
            BAD_PLAN,
            f"combination {config.combination!r} has nothing to choose from",
            expected=f"at least {ROBUST_BUCKETS} buckets",
            got=config.buckets,
        )
    for field in ("scale", "value_range", "weight_cap"):
        if not plan.ordinary(value := getattr(config, field)):
            raise ProblemError(BAD_PLAN, field, expected="> 0 and finite", got=value)
    plan.check_plan(config.privacy)
    if config.privacy.unit == "record" and config.weighting == "examples":
        raise ProblemError(
            BAD_PLAN, "record-level privacy hides how many records a client has", expected="weighting 'fixed'"
        )
    sum_plan(config).check(config.scale)
    if config.weighting == "examples":
        sum_plan(config).check_weight(config.scale, config.weight_cap)
    scheme.check_openings(config.max_openings * config.buckets, config.max_clients, length)


def committee_of(config: TaskConfig) -> Committee:
    """Raises `bad-committee`."""
    return Committee(len(config.holders), config.threshold, config.agreement)


def looks_like_hash(text: str) -> bool:
    """Whether this is written as a task's hash is, and so can be no name."""
    return len(text) == HASH_DIGITS and set(text) <= set("0123456789abcdef")


def check_keys(server: ServerEntry, holders: tuple[HolderEntry, ...]) -> None:
    """Keys that only their owners can use. Raises `malformed`, or `bad-committee` for an HPKE key of two holders."""
    check_public(server.key, f"the key of {server.name!r}")
    for holder in holders:
        check_public(holder.key, f"the key of {holder.name!r}")
        envelope.check_key(holder.hpke)
    envelope.check_distinct([holder.hpke for holder in holders])


def sum_plan(config: TaskConfig) -> SumPlan:
    """What the configuration's sums must hold."""
    weighted = config.weighting == "examples"
    return SumPlan(
        scheme=load_scheme(config.scheme, config.profile),
        privacy=config.privacy,
        length=sum(spec.size for spec in config.tensors) + weighted,
        min_clients=config.min_clients,
        max_clients=config.max_clients,
        value_range=config.value_range,
        weighted=weighted,
    )
