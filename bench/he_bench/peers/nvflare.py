"""NVIDIA FLARE's homomorphic encryption: its model encryptor, its serialiser, its aggregation helper.

The context is made by the provisioning tool's `HEBuilder` with its defaults. A message is what FLARE
sends: a data exchange object through FOBS, every tensor with a copy of the public context. The variant is
the number of tensors that the parameters are split into: 1 is the cheapest for FLARE, 20 a model of ten layers.
"""

from __future__ import annotations

import logging

import numpy as np
import nvflare
import tenseal as ts
from nvflare.apis.dxo import DXO, DataKind, from_bytes
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

from he_bench.peers import Floats, Work


class NvFlare:
    """One secret key, in the startup kit of every client."""

    signing = 0.0

    library = f"NVFlare {nvflare.__version__}, TenSEAL {ts.__version__}"
    decrypts = "every client (one shared secret key)"

    def __init__(self, work: Work, tensors: int) -> None:
        logging.disable(logging.INFO)
        builder = HEBuilder()
        builder.initialize(None, None)
        self.setting = f"CKKS {builder.poly_modulus_degree}/[60, 40, 40], scale 2^40, symmetric, {tensors} tensors"
        self._context = ts.context_from(builder.get_serialized_context(is_client=True))
        self._encryptor = HEModelEncryptor(weigh_by_local_iter=False)
        self._encryptor.tenseal_context = self._context
        self._encryptor.encrypt_layers = [True] * tensors
        self._flare_context = FLContext()
        self._helper = WeightedAggregationHelper(weigh_by_local_iter=False)
        self._update = {f"layer.{i:02}": section for i, section in enumerate(np.array_split(work.update, tensors))}
        self._message = b""

    def send(self) -> int:
        encrypted, _ = self._encryptor.encryption(dict(self._update), self._flare_context)
        self._message = DXO(DataKind.WEIGHT_DIFF, data=encrypted).to_bytes()
        return len(self._message)

    def receive(self) -> None:
        self._helper.add(from_bytes(self._message).data, 1.0, "client", 0)

    def mean(self) -> Floats:
        result = self._helper.get_result()
        return np.concatenate([np.array(result[name].decrypt(self._context.secret_key())) for name in self._update])


def make(work: Work, variant: str) -> NvFlare:
    return NvFlare(work, int(variant))
