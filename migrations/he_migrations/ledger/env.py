"""Alembic's entry point for the key holders' tree."""

from he_migrations.environment import run

run()
