"""Alembic's entry point for the server's tree."""

from he_migrations.environment import run

run()
