"""Where blobs live. Names that appear in database rows are random: a refused upload deletes its own file
and can never touch the file of an acknowledged one."""

from __future__ import annotations

import secrets

UPDATES = "updates"
KEYS = "keys"
ACCUMULATORS = "accumulators"
SHARES = "shares"
TOTALS = "totals"
MODELS = "models"
BOARD = "board"


def fresh() -> str:
    """A new random name."""
    return secrets.token_hex(16)


def update_blob(blob: str) -> str:
    """What the server adds of an update; deleted once it is folded."""
    return f"{UPDATES}/{blob}"


def key_blob(blob: str) -> str:
    """What key holders fetch of an update; kept until its round ends."""
    return f"{KEYS}/{blob}"


def accumulator_blob(blob: str) -> str:
    return f"{ACCUMULATORS}/{blob}"


def share_blob(blob: str) -> str:
    return f"{SHARES}/{blob}"


def total_blob(round_id: int, bucket: int) -> str:
    """The folded sum of one bucket of a round that is being opened."""
    return f"{TOTALS}/{round_id}-{bucket}"


def post_blob(task: str, blob: str) -> str:
    return f"{BOARD}/{task}/{blob}"


def model_blob(task: str, sha256: str) -> str:
    """Published tensors, safetensors bytes named by their own hash."""
    return f"{MODELS}/{task}/{sha256}"


def optimiser_blob(task: str, sha256: str) -> str:
    """The optimiser's state that belongs to the model of that hash."""
    return f"{MODELS}/{task}/optimiser-{sha256}"


def sum_blob(task: str, round_id: int) -> str:
    """The opened integer sum of a published round."""
    return f"{MODELS}/{task}/sum-{round_id}"
