"""Settings of `he-client`."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    SettingsConfigDict,
)

from he_client.floors import Floors, Unit
from he_party.settings import PartySettings


class ClientSettings(PartySettings):
    """A client's settings."""

    model_config = SettingsConfigDict(env_prefix="HUSHSUM_CLIENT_", extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("client"), description="identity, encrypted updates and receipts")
    server: str = Field(default="http://127.0.0.1:8470", description="the server's URL")
    task: str = Field(default="", description="the task's name or hash")
    floor_min_clients: int = Field(default=2, ge=1, description="the least min_clients of a task")
    floor_unit: Unit = Field(default="none", description="the least unit of differential privacy: record or client")
    floor_epsilon: float = Field(default=inf, gt=0, description="the most that a task's openings may cost")
    floor_delta: float = Field(default=1e-4, gt=0, lt=1, description="the largest delta at which epsilon counts")
    floor_collusion: int = Field(default=0, ge=0, description="the least f: key holders that may side with the server")

    @property
    def floors(self) -> Floors:
        """What this device asks of every task."""
        return Floors(
            self.floor_min_clients, self.floor_unit, self.floor_epsilon, self.floor_delta, self.floor_collusion
        )

    def keep_own(self) -> None:
        """Write where the server is, which task, and the floors to the data directory: every later command and program
        finds them there.
        """
        about = {"server": self.server, "task": self.task}
        if self.tls_ca is not None:
            about["tls_ca"] = str(self.tls_ca.absolute())
        floors = {f"floor_{name}": value for name, value in asdict(self.floors).items()}
        self.keep(self.data_dir, {**about, **floors})
