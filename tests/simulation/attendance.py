"""Whether a device that comes back takes part again in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from .invariants import Violation

WITHIN = 2
"""Of so many rounds to which a device could contribute, it is in one at least."""


@dataclass
class Attendance:
    """A device is *back* from the moment on at which it has all that taking part needs, until it lacks some of it.

    A round counts for a device that has been back since `t` if the server opened it for updates at `t` or later, and
    published it. A device *takes part* when a round is published that has an update of it in its sum, and this update
    came to the server at `t` or later: what it had sent before it went away does not tell that it can send again.
    `WITHIN` such rounds in a row without the device break the invariant, from its return on and for as long as it
    stays. Times are Unix seconds of the server's clock.
    """

    missed: dict[int, list[int]] = field(default_factory=dict)
    """For every device that is back: the rounds that counted since it took part, or else since it came."""
    since: dict[int, float] = field(default_factory=dict)
    returns: Counter[int] = field(default_factory=Counter)
    """How often a device that had come back missed so many rounds before it took part."""
    _awaited: set[int] = field(default_factory=set)

    def settle(self, device: int, now: float, *, well: bool) -> None:
        """Whether a device has all that it needs."""
        if well and device not in self.since:
            self.since[device], self.missed[device] = now, []
            self._awaited.add(device)
        elif not well and device in self.since:
            del self.since[device], self.missed[device]
            self._awaited.discard(device)

    def published(self, number: int, opened: float, received: Mapping[int, float]) -> None:
        """A round was: when it was opened for updates, and when the update of each device in its sum came.

        Raises `Violation`.
        """
        for device, since in self.since.items():
            missed = self.missed[device]
            if received.get(device, -inf) >= since:
                if device in self._awaited:
                    self._awaited.discard(device)
                    self.returns[len(missed)] += 1
                missed.clear()
            elif opened >= since:
                missed.append(number)
            if len(missed) == WITHIN:
                raise Violation("who comes back takes part again", f"client-{device} is not in rounds {missed}")

    def check_all(self, devices: Iterable[int]) -> None:
        """Every device is back, and has taken part since it came. Raises `Violation`."""
        out = sorted(self._awaited | (set(devices) - self.since.keys()))
        if out:
            raise Violation("everybody is back at the end", f"but not devices {out}")
