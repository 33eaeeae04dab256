"""Alembic migrations, one tree per kind of database: `server` for rounds, `ledger` for key holders."""
