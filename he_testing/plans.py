"""Plans and configurations from a flat list of their fields: a test names what it changes, not where that stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import fields, replace

from he_protocol.config import Aggregation, CommitteeSpec, Encryption, ModelSpec, Rounds, TaskConfig

TABLES: dict[str, Any] = {
    "model": ModelSpec,
    "encryption": Encryption,
    "rounds": Rounds,
    "aggregation": Aggregation,
    "committee": CommitteeSpec,
}
TABLE_OF = {field.name: table for table, kind in TABLES.items() for field in fields(kind)}


SMALL: dict[str, Any] = {
    "name": "test-task",
    "scheme": "kahe",
    "profile": "kahe-30",
    "epoch": 1,
    "value_range": 4.0,
    "scale": 1024.0,
    "privacy": {"unit": "none"},
    "min_clients": 3,
    "max_clients": 4,
    "collect_seconds": 60,
    "opening_seconds": 60,
    "staleness": 2,
    "max_openings": 30,
    "threshold": 2,
    "agreement": 3,
}
"""A flat plan: three or four clients make a round without differential privacy, 2 of 4 holders open it."""


def plan(**changes: Any) -> dict[str, Any]:
    """`SMALL` with some fields changed, as `build_config` and `he-authority task sign` take it."""
    return tables(SMALL | changes)


def tables(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as `build_config` takes it. What is no table's field stays where it is.

    >>> tables({"name": "demo", "staleness": 1, "buckets": 2})
    {'name': 'demo', 'rounds': {'staleness': 1, 'buckets': 2}}
    """
    plan: dict[str, Any] = {}
    for name, value in flat.items():
        (plan.setdefault(TABLE_OF[name], {}) if name in TABLE_OF else plan)[name] = value
    return plan


def made(**flat: Any) -> TaskConfig:
    """A configuration from all its fields, unchecked."""
    found = tables(flat)
    return TaskConfig(**{name: TABLES[name](**value) if name in TABLES else value for name, value in found.items()})


def changed(config: TaskConfig, **flat: Any) -> TaskConfig:
    """The configuration with some fields changed, in whichever table they are."""
    found = tables(flat)
    whole = {
        name: replace(getattr(config, name), **value) if name in TABLES else value for name, value in found.items()
    }
    return replace(config, **whole)
