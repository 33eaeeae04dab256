"""Revisions of the server's database, oldest first."""
