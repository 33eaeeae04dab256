"""Which schemes and profiles there are, found by name among what is installed.

A distribution declares each half of a scheme in an entry-point group: the public one here, those of clients and key
holders in groups of theirs. What is declared has the names that a `PublicHalf` has; a module will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_SCHEME
from he_protocol.schemes.scheme import Profile, Scheme

GROUP = "hushsum.schemes"
_INSECURE: ContextVar[bool] = ContextVar("insecure profiles", default=False)


class PublicHalf(Protocol):
    """What all parties know of a scheme. The profiles' `scheme` is the name that it is declared by."""

    @property
    def PROFILES(self) -> Mapping[str, Profile]: ...  # noqa: N802

    def make(self, profile: Any) -> Scheme: ...


@cache
def load_scheme(scheme: str, profile: str) -> Scheme:
    """The public half of a scheme, by the names in a task's configuration. Raises `wrong-scheme`."""
    half = _public(scheme)
    if profile not in half.PROFILES:
        raise ProblemError(WRONG_SCHEME, "unknown profile", expected=", ".join(half.PROFILES), got=profile)
    found = half.PROFILES[profile]
    if found.scheme != scheme:
        raise ProblemError(
            WRONG_SCHEME,
            f"profile {profile!r} is of another scheme than it is declared for",
            expected=scheme,
            got=found.scheme,
        )
    return half.make(found)


def all_profiles() -> tuple[Profile, ...]:
    """Every profile of every scheme that may be used."""
    found = [profile for name in scheme_names() for profile in _public(name).PROFILES.values()]
    return tuple(profile for profile in found if not profile.insecure_for_tests)


def scheme_names() -> tuple[str, ...]:
    return tuple(sorted(_declared(GROUP)))


def load_half(group: str, scheme: str) -> Any:
    """What is declared for a scheme in a group. Only a name that is declared reaches the import system.

    Raises `wrong-scheme` where there is none, or more than one: which it is would depend on the order of folders.
    """
    declared = _declared(group)
    found = {entry.value: entry for entry in declared.get(scheme, ())}
    if len(found) != 1:
        what = "declared twice" if found else "unknown"
        raise ProblemError(WRONG_SCHEME, f"{what} scheme ({group})", expected=", ".join(sorted(declared)), got=scheme)
    (entry,) = found.values()
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ProblemError(WRONG_SCHEME, f"scheme {scheme!r} cannot be loaded: {error}") from error


def _public(scheme: str) -> PublicHalf:
    half: PublicHalf = load_half(GROUP, scheme)
    return half


@cache
def _declared(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=group):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


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
