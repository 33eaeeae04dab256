"""The server's settings: TOML file, then environment (HUSHSUM_SERVER_...), then flags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from he_party.keyfile import KeyRecord, environment_passphrase, read_private, read_public
from he_party.settings import FileSettings, Flag
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.store.address import Address

ENV_PREFIX = "HUSHSUM_SERVER_"


class Settings(FileSettings):
    """Everything that can be configured. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("data"), description="where blobs, and by default the database, live")
    database_url: str = Field(
        default="", description="postgresql://... as its provider gives it; default: SQLite in data_dir"
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=0, le=65535)
    key_file: Path | None = Field(default=None, description="default: server.key in data_dir")
    authority_key_file: Path | None = Field(default=None, description="default: authority.pub in data_dir")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_update_bytes: int = Field(default=4 * 1024**3, gt=0)
    ingest_bytes: int = Field(default=256 * 1024**2, gt=0, description="uploads under way plus updates not folded yet")
    retain_bytes: int = Field(
        default=1024**3,
        ge=0,
        description="updates that are added up and kept, so that those of no use can be taken out again",
    )
    min_free_bytes: int = Field(default=256 * 1024**2, ge=0, description="uploads leave so much free on disk")
    max_uploads: int = Field(default=256, gt=0, description="uploads at once")
    max_wait: float = Field(default=10.0, ge=0, description="how long an upload waits for room before it is refused")
    min_rate: float = Field(default=1024.0, ge=0, description="bytes per second of an upload, over 30 s")
    max_uploads_per_client: int = Field(
        default=4, gt=0, description="of a client: at once, and resumable ones unfinished in a task"
    )
    max_connections: int = Field(default=4096, gt=0, description="connections at once")
    max_connections_per_address: int = Field(default=512, gt=0, description="those of one address without a proof")
    max_connections_per_party: int = Field(default=32, gt=0, description="those of one client or key holder")
    max_streams: int = Field(default=1024, gt=0, description="event streams at once")
    max_streams_per_party: int = Field(default=8, gt=0, description="event streams of one client or key holder")
    stranger_rate: float = Field(default=200.0, gt=0, description="requests per second without a proof, in all")
    upload_seconds: float = Field(default=86400.0, gt=0, description="how long a resumable upload is kept")
    lease_seconds: float = Field(default=60.0, gt=0)
    poll_seconds: float = Field(default=0.1, gt=0)
    drain_seconds: float = Field(default=30.0, ge=0)
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def database(self) -> Address:
        """Where the database is. Raises `bad-settings`."""
        return Address.read(self.database_url) if self.database_url else Address.of_file(self.data_dir / "server.db")

    @property
    def key_path(self) -> Path:
        return self.key_file or self.data_dir / "server.key"

    def check_home(self) -> None:
        """The data directory is there, with a server's key, or what else a server leaves. Raises `bad-settings`."""
        if not self.data_dir.is_dir():
            what = "is no folder" if self.data_dir.exists() else "is not there"
            raise ProblemError(BAD_SETTINGS, f"data_dir {self.data_dir} {what}; `he-server init` makes one")
        if not any(path.exists() for path in (self.key_path, self.data_dir / "server.db", self.data_dir / "blobs")):
            raise ProblemError(
                BAD_SETTINGS,
                f"no server lives in data_dir {self.data_dir.absolute()}",
                expected=f"its key {self.key_path}; `he-server init` makes one",
            )

    def read_key(self) -> KeyRecord:
        """The server's own key. Raises `bad-key-file`."""
        return read_private(self.key_path, KeyRecord, environment_passphrase(), group_may_read=self.group_readable_keys)

    def read_authority(self) -> bytes:
        """The authority's public key. Raises `bad-settings`."""
        path = self.authority_key_file or self.data_dir / "authority.pub"
        try:
            return read_public(path)
        except ProblemError as refusal:
            raise ProblemError(BAD_SETTINGS, f"the authority's public key: {refusal.detail}") from None


def load_settings(file: Path | None = None, **flags: Flag) -> Settings:
    """Read the settings; flags that are None do not count. Raises `bad-settings`."""
    found = Settings.load(file, **flags)
    if (found.tls_cert is None) != (found.tls_key is None):
        raise ProblemError(BAD_SETTINGS, "tls_cert and tls_key are given together or not at all")
    return found
