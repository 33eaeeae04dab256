"""What a sum of updates can hold: scales that cannot wrap, the error of the mean, and which profile fits."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, log, log2, sqrt

from he_protocol.errors import ProblemError
from he_protocol.privacy.plan import PrivacyPlan, check_noise, noise_std
from he_protocol.problems import BAD_PLAN, SUM_COULD_WRAP
from he_protocol.schemes.registry import all_profiles, load_scheme
from he_protocol.schemes.scheme import Scheme
from he_protocol.sharing import Sharing

WRAP_BITS = 40
"""Noise carries no integer of an epoch beyond what sums hold, except with probability 2^-40."""
TYPICAL_RANGE = 16.0
"""Default value_range, in typical coordinates clip_norm / sqrt(d) of a clipped update."""
ROTATED_RANGE = 5.0
"""The same where updates are rotated: coordinates are then all but normal, and 6 in 10 million are cut."""
GARBAGE_BITS = 64.0
"""A wrong share may open to what could be a sum with probability 2^-64."""
SILENT_SHARE = 0.1
"""Where no accuracy is asked for, the scheme's error may be this share of the DP noise."""
DEFAULT_ERROR = 1e-4
"""And without DP, this share of value_range."""


@dataclass(frozen=True)
class SumPlan:
    """One sum: how many integers, of how many clients, under which profile.

    value_range: largest absolute value of a coordinate. appended_range: the norm of the coordinates after the model's.
    openings: of the epoch, every bucket of a round counted.
    """

    scheme: Scheme
    privacy: PrivacyPlan
    length: int
    min_clients: int
    max_clients: int
    value_range: float
    openings: int
    appended_range: float = 0.0

    def noise_std(self, scale: float) -> float:
        """Standard deviation of the integer noise that each client adds."""
        return noise_std(
            self.privacy,
            scale=scale,
            length=self.length,
            min_clients=self.min_clients,
            weight_range=self.appended_range,
        )

    def largest(self, scale: float, count: int | None = None) -> float:
        """The largest absolute value that the sum of `count` (by default `max_clients`) honest updates can reach."""
        count = count or self.max_clients
        return count * (scale * self.value_range + 1) + self.tail(scale, count)

    def tail(self, scale: float, count: int) -> float:
        """The most that DP noise and the scheme's error move a sum of `count` updates by, in integer units."""
        return self.deviations * sqrt(count) * hypot(self.noise_std(scale), self.scheme.error_std)

    @property
    def deviations(self) -> float:
        """Standard deviations of summed noise that must still fit: it is sub-Gaussian, so t of them are passed with
        probability 2 exp(-t^2 / 2), here by any integer of any opening."""
        return sqrt(2 * log(2) * (WRAP_BITS + 1 + log2(max(1, self.length) * self.openings)))

    def check(self, scale: float) -> None:
        """Refuse a scale at which sums do not hold what they must, or clients' noise is too narrow.

        Raises `sum-could-wrap` or `bad-plan`.
        """
        self.check_capacity(scale)
        check_noise(self.privacy, self.noise_std(scale))

    def check_capacity(self, scale: float) -> None:
        """Refuse a scale under which sums could wrap around the modulus, or so fill it that a wrong sum could be one.

        Raises `sum-could-wrap`.
        """
        needed = self.largest(scale)
        if not needed <= self.scheme.capacity:
            raise ProblemError(
                SUM_COULD_WRAP,
                "lower encryption.scale, aggregation.value_range or rounds.max_clients",
                expected=f"sums up to {self.scheme.capacity}",
                got=f"{needed:.0f}",
            )
        if (bits := self.scheme.garbage_bits(needed, self.length, self.max_clients)) < GARBAGE_BITS:
            raise ProblemError(
                SUM_COULD_WRAP,
                "honest sums fill the modulus, so that a wrong one could pass; lower encryption.scale,"
                " aggregation.value_range or rounds.max_clients",
                expected=f"a chance of at most 2^-{GARBAGE_BITS:.0f}",
                got=f"2^-{bits:.1f}",
            )

    def largest_scale(self) -> float:
        """The largest power of two at which sums cannot wrap. Raises `sum-could-wrap` where even 1 is too large."""
        scale = 2.0 ** int(log2(self.scheme.capacity))
        while not self._fits(scale):
            scale /= 2
            if scale < 1:
                raise ProblemError(
                    SUM_COULD_WRAP, "no scale is small enough", expected=f"sums up to {self.scheme.capacity}"
                )
        return scale

    def _fits(self, scale: float) -> bool:
        try:
            self.check_capacity(scale)
        except ProblemError:
            return False
        return True

    def mean_error(self, scale: float, clients: int) -> float:
        """Standard deviation of a coordinate of the mean of `clients` updates, without DP noise.

        The scheme's error and stochastic rounding (variance at most 1/4 each): sqrt(std^2 + 1/4) / (sqrt(n) * scale).
        """
        return hypot(self.scheme.error_std, 0.5) / (sqrt(clients) * scale)

    def mean_noise(self, scale: float, clients: int) -> float:
        """Standard deviation of the DP noise in a coordinate of the mean of `clients` updates."""
        return self.noise_std(scale) / (sqrt(clients) * scale)

    def bytes_per_parameter(self, sharing: Sharing) -> float:
        """Size of an update's body, by the number of its integers."""
        return sum(section.size for section in self.scheme.body(self.length, sharing)) / self.length


@dataclass(frozen=True)
class Candidate:
    """One profile's offer; errors are standard deviations of a coordinate of the mean. No `refusal`: it fits."""

    profile: str
    scale: float
    value_range: float
    bytes_per_parameter: float
    mean_error: float
    mean_noise: float
    refusal: str


def plan_sums(
    privacy: PrivacyPlan,
    *,
    length: int,
    min_clients: int,
    max_clients: int,
    sharing: Sharing,
    openings: int,
    value_range: float | None = None,
    accuracy: float | None = None,
    rotation: bool = False,
) -> list[Candidate]:
    """Every profile's offer for a task, those that fit first, fewest bytes first: the first is the recommendation.

    openings: opened sums of one epoch, every bucket of a round counted. accuracy: the largest acceptable
    standard deviation of the scheme's error in a coordinate of the mean; by default a tenth of the DP noise, or
    1e-4 of value_range without DP. rotation: updates will be rotated, so that a smaller value_range does.
    """
    if value_range is None:
        if privacy.unit == "record" or not privacy.clip_norm:
            raise ProblemError(BAD_PLAN, "value_range is needed: the clip does not bound a client's update here")
        typical = ROTATED_RANGE if rotation else TYPICAL_RANGE
        value_range = min(privacy.clip_norm, typical * privacy.clip_norm / sqrt(length))
    offers = []
    for profile in all_profiles():
        plan = SumPlan(
            load_scheme(profile.scheme, profile.name),
            privacy,
            length,
            min_clients,
            max_clients,
            value_range,
            openings,
        )
        offers.append(_offer(plan, sharing, openings, accuracy))
    return sorted(offers, key=lambda offer: (bool(offer.refusal), offer.bytes_per_parameter))


def _offer(plan: SumPlan, sharing: Sharing, openings: int, accuracy: float | None) -> Candidate:
    scale = error = noise = 0.0
    refusal = ""
    try:
        scale = plan.largest_scale()
        plan.check(scale)
        plan.scheme.check_openings(openings, plan.max_clients, plan.length)
        error, noise = plan.mean_error(scale, plan.max_clients), plan.mean_noise(scale, plan.max_clients)
        wanted = accuracy or (SILENT_SHARE * noise if noise else DEFAULT_ERROR * plan.value_range)
        if error > wanted:
            refusal = f"error of the mean {error:.3g} above {wanted:.3g}"
    except ProblemError as reason:
        refusal = reason.detail
    size = plan.bytes_per_parameter(sharing)
    return Candidate(plan.scheme.profile.name, scale, plan.value_range, size, error, noise, refusal)
