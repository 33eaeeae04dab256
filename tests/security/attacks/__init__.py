"""Parties that lie, by who they are: each attack with its defence off and on."""
