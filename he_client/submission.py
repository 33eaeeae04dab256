"""What a client knows of an update once the server has acknowledged it."""

from __future__ import annotations

from dataclasses import dataclass

from he_client.quantise import Limited


@dataclass(frozen=True)
class Submission:
    """An acknowledged update. `bytes` is what was uploaded, head included; `seconds` by stage.

    limited: of an update that `submit` encrypted, what the task's limits took. It never leaves this device.
    """

    task_id: str
    update_id: str
    round: int
    bytes: int
    seconds: dict[str, float]
    limited: Limited | None = None

    @property
    def saturated(self) -> float | None:
        """The share of the update's coordinates that were cut to the task's value range, where it is known."""
        return None if self.limited is None else self.limited.saturated
