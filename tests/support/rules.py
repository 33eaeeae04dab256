"""Switching one defence off."""

from __future__ import annotations

from keys.checks import RULES, Rule


def without(*off: Rule) -> tuple[Rule, ...]:
    """All rules of a key holder but these."""
    rest = tuple(rule for rule in RULES if rule not in off)
    assert len(rest) == len(RULES) - len(off)
    return rest
