"""The kernels that a server calls, for every profile: what compiles them before a round needs them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from he_party.kernels import Steps
from he_protocol.arithmetic.residues import ResidueLayout, Residues, unpack
from he_protocol.privacy.rotation import Rotation
from he_protocol.schemes.registry import all_profiles, load_scheme
from he_protocol.schemes.scheme import Scheme
from he_protocol.sharing import Sharing
from he_server.blobs.vectors import load_kernels


def kernel_steps() -> Steps:
    """One step for each profile: a task of any of them may be added."""
    for profile in all_profiles():
        yield profile.name, partial(_load, load_scheme(profile.scheme, profile.name))
    yield "rotation", _turn


def _turn() -> None:
    Rotation(64, b"").inverse(np.zeros(64))


def _load(scheme: Scheme) -> None:
    """Check, add and open zeros."""
    for layout in _layouts(scheme):
        load_kernels(layout)
        share = scheme.share_layout(1)
        zeros = unpack(bytes(share.size), share)

        def read(first: int, count: int, vector: Residues = zeros) -> Residues:
            return vector[first : first + count]

        scheme.decryptor([read], 1, 1, bytes(32))(0, layout.zeros())


def _layouts(scheme: Scheme) -> Iterator[ResidueLayout]:
    """Of the section that the server sums."""
    yield from (section.layout for section in scheme.body(1, Sharing(1, 1)) if section.role == "sum" and section.layout)
