"""What the authority signs of a task: `TaskConfig`, in tables. Each table checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, isfinite, prod
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import asdict

from he_protocol import envelope
from he_protocol.aggregation.combination import COMBINATIONS, Combination, CombinationName
from he_protocol.aggregation.metrics import Metric, Reports
from he_protocol.aggregation.optimiser import Optimiser
from he_protocol.aggregation.weighting import Weighting, WeightingName, load_weighting
from he_protocol.committee import Committee, check_collusion
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import check_public
from he_protocol.messages import Count, Digest, HpkeKey, Key32, Message, Name, Positive, PositiveFloat
from he_protocol.privacy.plan import PrivacyPlan, check_ordinary
from he_protocol.problems import BAD_PLAN, FINGERPRINT_MISMATCH
from he_protocol.schemes.registry import check_secure, load_scheme
from he_protocol.schemes.scheme import Scheme
from he_protocol.sharing import Sharing
from he_protocol.sum_bounds import SumPlan
from he_protocol.tensors import MODEL_HEADER_BYTES, header

MAX_NAME = 256
MAX_DIMENSIONS = 32
MAX_LENGTH = 1 << 30
MAX_VECTORS = 1024
"""Of one holder's share: their digests must fit into the head of a frame."""
HASH_DIGITS = 64
LEAST_CLIENTS = 2
"""In a sum: that of one update is that update. Devices ask for no less by default, and no authority signs less."""


class TensorSpec(Message, frozen=True):
    """One tensor of a model; of a scalar the shape is ()."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    shape: Annotated[tuple[Positive, ...], Meta(max_length=MAX_DIMENSIONS)]

    @property
    def size(self) -> int:
        return prod(self.shape)

    def check(self) -> None:
        """What readers of the signed task ask of it, before it is signed. Raises `bad-plan`."""
        if not 1 <= len(self.name) <= MAX_NAME or self.name == "__metadata__":  # safetensors keeps that one for itself
            raise ProblemError(
                BAD_PLAN,
                f"a tensor's name: {self.name[:80]!r}",
                expected=f"1 to {MAX_NAME} characters, not '__metadata__'",
                got=f"{len(self.name)} characters",
            )
        if len(self.shape) > MAX_DIMENSIONS or 0 in self.shape:
            raise ProblemError(
                BAD_PLAN,
                f"the shape of tensor {self.name!r}",
                expected=f"at most {MAX_DIMENSIONS} dimensions, none of them 0",
                got=self.shape,
            )


class ModelSpec(Message, frozen=True):
    """What is trained. initial_model: SHA-256 of version 0, as safetensors without metadata."""

    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    initial_model: Digest

    @property
    def parameters(self) -> int:
        """Model parameters: d."""
        return sum(spec.size for spec in self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: spec.shape for spec in self.tensors}

    def check(self) -> None:
        """Raises `bad-plan`."""
        if not self.tensors:
            raise ProblemError(BAD_PLAN, "the model has no tensors")
        check_distinct([spec.name for spec in self.tensors], "tensor names")
        for spec in self.tensors:
            spec.check()
        if (size := len(header(self.shapes, np.dtype("<f4"))[0])) > MODEL_HEADER_BYTES:
            raise ProblemError(
                BAD_PLAN,
                f"the model has too many tensors ({len(self.tensors)}) for the header of its file;"
                " join some, or leave some out",
                expected=f"names and shapes in at most {MODEL_HEADER_BYTES} bytes",
                got=size,
            )


class Encryption(Message, frozen=True):
    """How updates are encrypted. fingerprint: the profile's. scale: integer units to a float's 1."""

    scheme: Name
    profile: Name
    fingerprint: Digest
    scale: PositiveFloat

    def load(self) -> Scheme:
        """Raises `wrong-scheme`."""
        return load_scheme(self.scheme, self.profile)

    def check(self) -> None:
        """Raises `wrong-scheme`, `fingerprint-mismatch` or `bad-plan`."""
        profile = self.load().profile
        check_secure(profile)
        if self.fingerprint != (known := profile.fingerprint):
            raise ProblemError(
                FINGERPRINT_MISMATCH,
                f"profile {self.profile} has other parameters here",
                expected=self.fingerprint.hex(),
                got=known.hex(),
            )
        check_ordinary("encryption.scale", self.scale)


class Rounds(Message, frozen=True):
    """When rounds close and what they take.

    buckets: the most disjoint buckets that a round's updates are split into, of at least `min_clients` each,
    opened apart, so that one poisoned update costs its bucket and not the round.
    update_lifetime: how old an update, and a manifest, may be at most when key holders vote, in seconds.
    """

    min_clients: Positive
    max_clients: Positive
    collect_seconds: Positive
    opening_seconds: Positive
    staleness: Count
    max_openings: Positive
    update_lifetime: Positive = 30 * 86_400
    buckets: Positive = 1

    def check(self) -> None:
        """Raises `bad-plan`."""
        if (needed := self.buckets * self.min_clients) > self.max_clients:
            raise ProblemError(
                BAD_PLAN,
                "rounds.buckets * rounds.min_clients exceeds rounds.max_clients",
                got=f"{needed} > {self.max_clients}",
            )


class Aggregation(Message, frozen=True):
    """How updates become the next model.

    weighting: "uniform" divides an opened sum by the number of updates; "examples" by the summed
    weights (each at most `weight_cap` examples), which travel inside the ciphertext; "fixed" by
    `weight_cap` (for DP-FedSGD: the expected number of sampled records over all clients). No coordinate of a published
    mean exceeds what honest updates can come to: `value_range`; with "fixed", value_range * max_clients / weight_cap.
    combination: of the buckets' means, coordinate by coordinate; "mean" is that of all updates, "trimmed-mean" leaves
    out a quarter of the buckets (rounded down, at least one) at each end.
    rotation: updates are rotated before they are cut to `value_range`, and the mean back, so that no coordinate is
    much larger than the others (`he_protocol.privacy.rotation`). Goes with a combination that is linear only.
    metrics: what clients report, of which rounds have the sums. metrics_share: how much that may add to the
    sensitivity, as a part of clip_norm: 0.1 adds 0.5 % to the noise of everything.
    """

    value_range: PositiveFloat
    weighting: WeightingName = "uniform"
    weight_cap: PositiveFloat = 1.0
    combination: CombinationName = "mean"
    optimiser: Optimiser = Optimiser()
    rotation: bool = False
    metrics: tuple[Metric, ...] = ()
    metrics_share: PositiveFloat = 0.1

    def load_weighting(self) -> Weighting:
        return load_weighting(self.weighting, self.value_range, self.weight_cap)

    def load_combination(self) -> Combination:
        return COMBINATIONS[self.combination]

    def check(self) -> None:
        """Raises `bad-plan`."""
        check_ordinary("aggregation.value_range", self.value_range)
        check_ordinary("aggregation.weight_cap", self.weight_cap)
        check_ordinary("aggregation.metrics_share", self.metrics_share)
        self.optimiser.check()


class ServerEntry(Message, frozen=True):
    name: Name
    key: Key32


class HolderEntry(Message, frozen=True):
    name: Name
    key: Key32
    hpke: HpkeKey


class CommitteeSpec(Message, frozen=True):
    """The key holders.

    threshold, agreement: holders that open a sum, and that must have voted for it before; see `Committee`.
    allow_no_collusion: the committee may be one that a single colluding holder breaks.
    """

    holders: Annotated[tuple[HolderEntry, ...], Meta(min_length=1)]
    threshold: Positive
    agreement: Positive
    allow_no_collusion: bool = False

    @property
    def numbers(self) -> Committee:
        """Raises `bad-committee`."""
        return Committee(len(self.holders), self.threshold, self.agreement)

    @property
    def sharing(self) -> Sharing:
        return Sharing(len(self.holders), self.threshold)

    def check(self) -> None:
        """Its numbers, and keys that only their owners can use.

        Raises `bad-committee`, `bad-plan`, or `malformed` for a key that is none.
        """
        check_collusion(self.numbers, self.allow_no_collusion)
        check_distinct([holder.name for holder in self.holders], "holder names")
        check_distinct([holder.key for holder in self.holders], "holder keys")
        for holder in self.holders:
            check_public(holder.key, f"the key of {holder.name!r}")
            envelope.check_key(holder.hpke)
        envelope.check_distinct([holder.hpke for holder in self.holders])


class TaskConfig(Message, frozen=True):
    """One epoch of a job: what it is called, who aggregates it, and a table for each of its sides."""

    name: Name
    epoch: Count
    server: ServerEntry
    model: ModelSpec
    encryption: Encryption
    privacy: PrivacyPlan
    rounds: Rounds
    aggregation: Aggregation
    committee: CommitteeSpec

    @property
    def length(self) -> int:
        """Coordinates that travel: d, those of the metrics, and those that the weighting appends."""
        return self.model.parameters + self.reports.appended + self.aggregation.load_weighting().appended

    @property
    def reports(self) -> Reports:
        """What clients report beside their updates."""
        clip_norm = self.privacy.clip_norm if self.privacy.noisy else 0.0
        return Reports(
            self.aggregation.metrics, self.aggregation.metrics_share, clip_norm, self.aggregation.value_range
        )

    @property
    def sum_plan(self) -> SumPlan:
        """What the task's sums must hold."""
        return SumPlan(
            scheme=self.encryption.load(),
            privacy=self.privacy,
            length=self.length,
            min_clients=self.rounds.min_clients,
            max_clients=self.rounds.max_clients,
            value_range=self.aggregation.value_range,
            openings=self.rounds.max_openings * self.rounds.buckets,
            appended_range=hypot(self.reports.norm, self.aggregation.load_weighting().appended_range),
        )

    def check(self) -> None:
        """Refuse a configuration whose parts do not fit together.

        Raises `wrong-scheme`, `fingerprint-mismatch`, `bad-committee`, `bad-plan`, `sum-could-wrap`, or `malformed` for
        a key that is none.
        """
        check_name(self.name)
        check_numbers(self)
        check_public(self.server.key, f"the key of {self.server.name!r}")
        for table in (self.encryption, self.committee, self.model, self.rounds, self.aggregation, self.privacy):
            table.check()
        self.reports.check()
        _check_together(self)


def _check_together(config: TaskConfig) -> None:
    """What spans several tables."""
    rounds, aggregation, scale = config.rounds, config.aggregation, config.encryption.scale
    if (vectors := rounds.buckets * len(config.committee.sharing.subshares_of(0))) > MAX_VECTORS:
        raise ProblemError(
            BAD_PLAN, "too many buckets for one share", expected=f"at most {MAX_VECTORS} vectors", got=vectors
        )
    if (length := config.length) > MAX_LENGTH:
        raise ProblemError(BAD_PLAN, "the model is too large", expected=f"at most {MAX_LENGTH} parameters", got=length)
    if rounds.buckets < (least := aggregation.load_combination().least_buckets):
        raise ProblemError(
            BAD_PLAN,
            f"aggregation.combination {aggregation.combination!r} has nothing to choose from",
            expected=f"at least {least} buckets",
            got=rounds.buckets,
        )
    if aggregation.rotation and not aggregation.load_combination().linear:
        raise ProblemError(
            BAD_PLAN,
            f"aggregation.rotation mixes coordinates, and {aggregation.combination!r} chooses among them",
            expected="combination 'mean'",
            got=aggregation.combination,
        )
    config.sum_plan.check(scale)
    aggregation.load_weighting().check(config.sum_plan, scale)
    config.encryption.load().check_openings(rounds.max_openings * rounds.buckets, rounds.max_clients, length)


def check_fewest(min_clients: int) -> None:
    """Refuse sums that hide nobody. Raises `bad-plan`."""
    if min_clients < LEAST_CLIENTS:
        raise ProblemError(
            BAD_PLAN,
            "min_clients: the sum of one update is that update, and clients refuse such a task",
            expected=f"at least {LEAST_CLIENTS}",
            got=min_clients,
        )


def check_numbers(table: Struct, path: str = "") -> None:
    """No number of a configuration is infinite, or none: in JSON it would be null, which nobody reads.

    Raises `bad-plan`.
    """
    for field, value in asdict(table).items():
        if isinstance(value, Struct):
            check_numbers(value, f"{path}{field}.")
        elif isinstance(value, float) and not isfinite(value):
            raise ProblemError(BAD_PLAN, f"{path}{field}", expected="a finite number", got=value)


def check_name(name: str) -> None:
    """A job's name is not written as a task's hash is. Raises `bad-plan`."""
    if looks_like_hash(name):
        raise ProblemError(BAD_PLAN, "the name looks like a task's hash", expected="a name", got=name)


def looks_like_hash(text: str) -> bool:
    """Whether this is written as a task's hash is, and so can be no name."""
    return len(text) == HASH_DIGITS and set(text) <= set("0123456789abcdef")


def check_distinct(values: Sequence[object], what: str) -> None:
    """Raises `bad-plan`."""
    if len(set(values)) != len(values):
        raise ProblemError(BAD_PLAN, f"{what} must differ")
