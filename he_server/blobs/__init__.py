"""Bytes that are too large for the database: where they lie, and the arithmetic over them."""
