"""Alembic's entry point for the server's tree."""

from migrations.environment import run

run()
