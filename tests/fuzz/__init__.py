"""Bytes that nobody sensible sends: generated requests, damaged messages, coverage-guided inputs."""
