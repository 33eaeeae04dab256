"""Migrations of a key holder's ledger."""
