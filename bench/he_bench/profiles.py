"""The profiles that there are, and the one that others are compared with."""

from __future__ import annotations

from functools import cache

from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_SCHEME
from he_protocol.schemes.registry import all_profiles
from he_protocol.schemes.scheme import Profile

FLAGSHIP = "kahe-30"
"""The default profile of a new task."""


@cache
def profiles() -> dict[str, Profile]:
    """Every profile of every scheme, by name."""
    return {profile.name: profile for profile in all_profiles()}


def profile(name: str) -> Profile:
    """One profile. Raises `wrong-scheme` for a name that no scheme has."""
    if name not in profiles():
        raise ProblemError(WRONG_SCHEME, "unknown profile", expected=", ".join(profiles()), got=name)
    return profiles()[name]


def default_profile() -> str:
    """The flagship, or the first profile where this build lacks it."""
    return FLAGSHIP if FLAGSHIP in profiles() else next(iter(profiles()))
