"""Alembic's entry point for the key holders' tree."""

from migrations.environment import run

run()
