"""Writes the known-answer files next to it: `python -m tests.vectors.make`.

Deterministic: keys come from fixed bytes, Ed25519 signatures are deterministic (RFC 8032), and JWS
are put together with `cryptography` alone, so that they also check the library in use.
`good_*.json` holds what every implementation must accept with exactly this result, `bad_*.json`
what it must refuse with exactly this problem. Bytes are hex unless a JSON message carries them.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.vectors import arithmetic, kahe, wire

HERE = Path(__file__).parent
FILES = {
    f"{name}.json": make
    for kind in (wire, arithmetic, kahe)
    for name, make in vars(kind).items()
    if name.startswith(("good_", "bad_"))
}


def text(name: str) -> str:
    """The whole content of one file."""
    return json.dumps(FILES[name](), indent=1) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (HERE / name).write_text(text(name))
