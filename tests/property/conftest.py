"""Kernels compile on their first call, so single examples have no deadline."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hushsum", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("hushsum")
