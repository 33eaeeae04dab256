"""`python -m he_server`."""

from he_server.cli.main import app

app()
