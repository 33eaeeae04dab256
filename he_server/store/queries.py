"""Reads that several stores share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from he_server.store.schema import rounds, shares

_SHARES = select(func.count()).select_from(shares).where(shares.c.round_id == rounds.c.id).scalar_subquery()
SELECT_ROUNDS: Select[Any] = select(rounds, _SHARES.label("shares"))
"""All columns of rounds, and `shares`: how many key holders answered."""
