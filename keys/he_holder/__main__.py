"""`python -m he_holder`."""

from he_holder.cli.main import app

app()
