"""Settings of `he-keys`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from he_client.settings import PartySettings


class Settings(PartySettings):
    """A key holder's settings; times in seconds."""

    model_config = SettingsConfigDict(env_prefix="HUSHSUM_KEYS_", extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("holder"), description="identity, epoch secrets and ledger")
    floor: int = Field(default=2, ge=1, description="our own minimum of clients per sum, whatever a task says")
    poll_seconds: float = Field(default=0.5, gt=0)
