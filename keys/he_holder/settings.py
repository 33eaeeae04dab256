"""Settings of `he-holder`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from he_party.settings import PartySettings


class Settings(PartySettings):
    """A key holder's settings; times in seconds."""

    model_config = SettingsConfigDict(env_prefix="HUSHSUM_HOLDER_", extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("holder"), description="identity, epoch secrets and ledger")
    min_clients_floor: int = Field(
        default=2, ge=1, description="our own minimum of clients per sum, whatever a task says"
    )
    least_f: int = Field(
        default=1, ge=0, description="join no committee whose promises fewer colluding holders than this break; 0: any"
    )
    require_revocations: bool = Field(default=False, description="open nothing before a revocation list was seen")
    poll_seconds: float = Field(default=0.5, gt=0)
    destroy_after: float = Field(
        default=86_400,
        ge=0,
        description="destroy an epoch's keys so long after its last possible opening was decided; inf: only by hand",
    )
