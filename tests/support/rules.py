"""Switching one defence off."""

from __future__ import annotations

from he_holder.rules import RELEASING, SCREENING, VOTING, Rule

EVERY_RULE = tuple(dict.fromkeys((*SCREENING, *VOTING, *RELEASING)))
"""Of a key holder, whatever it is about to do."""


def without(*off: Rule, rules: tuple[Rule, ...] = VOTING) -> tuple[Rule, ...]:
    """Rules of a key holder but these."""
    rest = tuple(rule for rule in rules if rule not in off)
    assert len(rest) == len(rules) - len(off)
    return rest
