"""The schemes under test: the one list that tests of clients and of whole deployments go through."""

SCHEMES: tuple[tuple[str, str], ...] = (("ckks", "ckks-8192"), ("kahe", "kahe-30"))
"""Pairs of scheme and profile."""
