"""`python -m he_authority`."""

from he_authority.cli import app

app()
