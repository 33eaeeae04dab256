"""The async client library: train locally, add noise, encrypt, upload once.

See `HushSumClient` for the whole interface and `he_client.training` for the PyTorch helper.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from he_client.client import HushSumClient
    from he_client.context import LocalResult, TrainingContext
    from he_client.floors import Floors
    from he_client.published import Model
    from he_client.quantise import Limited
    from he_client.submission import Submission
    from he_client.sync import SyncClient
    from he_party import __version__
    from he_party.identity import Identity

__all__ = [
    "Floors",
    "HushSumClient",
    "Identity",
    "Limited",
    "LocalResult",
    "Model",
    "Submission",
    "SyncClient",
    "TrainingContext",
    "__version__",
]
_HOMES = {
    "Floors": "he_client.floors",
    "HushSumClient": "he_client.client",
    "Identity": "he_party.identity",
    "Limited": "he_client.quantise",
    "LocalResult": "he_client.context",
    "Model": "he_client.published",
    "Submission": "he_client.submission",
    "SyncClient": "he_client.sync",
    "TrainingContext": "he_client.context",
    "__version__": "he_party",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first asked for: the HTTP stack and numpy take most of a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
