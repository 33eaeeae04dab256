"""The registry of schemes and the fingerprint of profiles."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from he_protocol.problems import WRONG_SCHEME
from he_protocol.schemes.registry import load_scheme, scheme_names
from he_testing.problems import expect_problem


def test_schemes_are_found_by_name():
    assert scheme_names() == ("ckks", "kahe")
    scheme = load_scheme("ckks", "ckks-8192")
    assert scheme.profile.name == "ckks-8192"
    assert scheme.ceremony
    assert load_scheme("ckks", "ckks-8192") is scheme


@pytest.mark.parametrize("name", ["", "bfv", "__init__", "ckks.x", "../ckks", "CKKS"])
def test_unknown_schemes_are_refused_by_name(name):
    """The name comes from a message: it must never reach the import system unchecked."""
    with expect_problem(WRONG_SCHEME, "scheme"):
        load_scheme(name, "ckks-8192")


def test_unknown_profiles_are_refused_by_name():
    with expect_problem(WRONG_SCHEME, "expected ckks-8192, got ckks-1"):
        load_scheme("ckks", "ckks-1")


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("ckks", "ckks-8192"),
        ("kahe", "kahe-30"),
        ("kahe", "kahe-20"),
        ("kahe", "kahe-18"),
        ("kahe", "kahe-16"),
        ("kahe", "kahe-14"),
    ],
)
def test_every_field_of_a_profile_is_in_its_fingerprint(scheme, name):
    """Two parties with any different number must notice before they exchange ciphertexts."""
    profile = load_scheme(scheme, name).profile
    seen = {profile.fingerprint}
    for field in fields(profile):
        value = getattr(profile, field.name)
        if isinstance(value, str):
            other = value + "x"
        elif isinstance(value, tuple):
            other = value[::-1]
        else:
            other = value + 1
        seen.add(replace(profile, **{field.name: other}).fingerprint)
    assert len(seen) == len(fields(profile)) + 1
    assert replace(profile).fingerprint == profile.fingerprint
    assert len(profile.fingerprint) == 32
