"""TenSEAL by itself, at its cheapest setting for sums: two 60-bit primes, symmetric encryption.

Additions need no level, so one data prime and SEAL's special prime will do, and symmetric encryption
costs least. The scale leaves room for the sum of all clients.
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import tenseal as ts

from he_bench.peers import Floats, Work

DEGREE, MODULI = 8192, [60, 60]
VALUE_BITS = 2
"""Room for values up to 4 in magnitude, and the sign."""


class TenSeal:
    """One key pair for all clients, as TenSEAL's tutorials have it."""

    signing = 0.0

    library = f"TenSEAL {ts.__version__}"
    decrypts = "every client (one shared secret key)"

    def __init__(self, work: Work) -> None:
        scale_bits = MODULI[0] - VALUE_BITS - 2 - ceil(log2(work.clients))
        self.setting = f"CKKS {DEGREE}/{MODULI}, scale 2^{scale_bits}, symmetric"
        context = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=DEGREE,
            coeff_mod_bit_sizes=MODULI,
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        context.global_scale = 2.0**scale_bits
        self._clients = context
        self._server = ts.context_from(context.serialize(save_secret_key=False))
        self._update = work.update
        self._sum: ts.CKKSVector | None = None
        self._count = 0
        self._message = b""

    def send(self) -> int:
        self._message = ts.ckks_vector(self._clients, self._update).serialize()
        return len(self._message)

    def receive(self) -> None:
        vector = ts.ckks_vector_from(self._server, self._message)
        self._sum = vector if self._sum is None else self._sum + vector
        self._count += 1

    def mean(self) -> Floats:
        assert self._sum is not None
        return np.array(self._sum.decrypt(self._clients.secret_key())) / self._count


def make(work: Work, variant: str) -> TenSeal:
    return TenSeal(work)
