"""Good bytes to damage: the known-answer vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from he_protocol import messages
from he_protocol.config import TaskConfig
from he_protocol.messages import Message

_HERE = Path(__file__).parents[1] / "vectors"

KINDS: dict[str, type[Message]] = {
    name: kind
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
} | {"TaskConfig": TaskConfig}
"""Every signed message, and the structs inside them."""


def load(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_HERE / f"{name}.json").read_text())
    return found


MESSAGES = load("good_messages")
