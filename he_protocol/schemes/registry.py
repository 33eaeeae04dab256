"""Which schemes and profiles there are, found by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module

from he_protocol import schemes
from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_SCHEME
from he_protocol.schemes.scheme import Profile, Scheme

NO_SCHEMES = frozenset({"registry", "scheme", "seal_codec"})
"""Modules here that are none."""
_INSECURE: ContextVar[bool] = ContextVar("insecure profiles", default=False)


@cache
def load_scheme(scheme: str, profile: str) -> Scheme:
    """The public half of a scheme, by the names in a task's configuration."""
    if scheme not in scheme_names():
        raise ProblemError(WRONG_SCHEME, "unknown scheme", expected=", ".join(scheme_names()), got=scheme)
    module = import_module(f"{__package__}.{scheme}")
    profiles: dict[str, Profile] = module.PROFILES
    if profile not in profiles:
        raise ProblemError(WRONG_SCHEME, "unknown profile", expected=", ".join(profiles), got=profile)
    made: Scheme = module.make(profiles[profile])
    return made


@cache
def all_profiles() -> tuple[Profile, ...]:
    """Every profile of every scheme that may be used."""
    return tuple(
        profile
        for name in scheme_names()
        for profile in import_module(f"{__package__}.{name}").PROFILES.values()
        if not profile.insecure_for_tests
    )


@contextmanager
def insecure_profiles() -> Iterator[None]:
    """Within it, tasks with profiles for tests are taken. Nothing that is installed enters it (a test looks)."""
    token = _INSECURE.set(True)
    try:
        yield
    finally:
        _INSECURE.reset(token)


def check_secure(profile: Profile) -> None:
    """Raises `wrong-scheme` for a profile that protects nothing, but within `insecure_profiles`."""
    if profile.insecure_for_tests and not _INSECURE.get():
        raise ProblemError(WRONG_SCHEME, f"profile {profile.name!r} is insecure: it is for tests only")


@cache
def scheme_names() -> tuple[str, ...]:
    found = {module.name for module in pkgutil.iter_modules(schemes.__path__)}
    return tuple(sorted(found - NO_SCHEMES))
