"""The async client library: train locally, add noise, encrypt, upload once.

See `HushSumClient` for the whole interface and `he_client.training` for the PyTorch helper.
"""

from he_client.client import HushSumClient, Submission
from he_client.floors import Floors
from he_client.published import Model
from he_client.sync import SyncClient
from he_party.identity import Identity

__all__ = ["Floors", "HushSumClient", "Identity", "Model", "Submission", "SyncClient"]
