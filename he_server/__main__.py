"""`python -m he_server`."""

from he_server.cli import app

app()
