"""Settings of the programs that speak to a server: TOML file, then environment, then flags."""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from he_client.floors import Floors, Unit
from he_protocol.keyfile import write_durably
from he_protocol.problems import BAD_SETTINGS, Refusal

Flag = str | int | float | Path | None
SETTINGS_FILE = "settings.toml"
"""In a client's data directory: what `he-client init` was told, under every other source."""


class PartySettings(BaseSettings):
    """What clients and key holders have in common. Subclasses name their environment prefix."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path(), description="where the identity and the state live")
    passphrase: SecretStr = Field(default=SecretStr(""), description="opens the key file")
    tls_ca: Path | None = Field(default=None, description="PEM file of the authority behind the server's certificate")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over environment over file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, file: Path | None = None, **flags: Flag) -> Self:
        """Read the settings; flags that are None do not count. Raises `bad-settings`, naming the setting."""
        if file is not None and not file.is_file():
            raise Refusal(BAD_SETTINGS, f"there is no settings file {file}")
        return cls._read([file] if file is not None else [], flags)

    @classmethod
    def _read(cls, files: list[Path], flags: Mapping[str, Flag]) -> Self:
        """Of several files the later one wins."""
        config = SettingsConfigDict(**{**cls.model_config, "toml_file": files})
        reader = type(cls.__name__, (cls,), {"model_config": config, "__module__": cls.__module__})
        try:
            found: Self = reader(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise Refusal(BAD_SETTINGS, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (SettingsError, tomllib.TOMLDecodeError, OSError) as error:
            where = ", ".join(map(str, files)) or "the environment"
            raise Refusal(BAD_SETTINGS, f"{where}: {error}") from None
        return found

    @property
    def tls(self) -> ssl.SSLContext | None:
        """A context that trusts `tls_ca`, or None for the system's trust."""
        if self.tls_ca is None:
            return None
        try:
            return ssl.create_default_context(cafile=os.fspath(self.tls_ca))
        except OSError as error:
            raise Refusal(BAD_SETTINGS, f"tls_ca {self.tls_ca}: {error}") from None


class ClientSettings(PartySettings):
    """A client's settings."""

    model_config = SettingsConfigDict(env_prefix="HUSHSUM_CLIENT_", extra="forbid", frozen=True)

    data_dir: Path = Field(default=Path("client"), description="identity, sealed updates and receipts")
    server: str = Field(default="http://127.0.0.1:8470", description="the server's URL")
    task: str = Field(default="", description="the task's name or hash")
    floor_min_clients: int = Field(default=2, ge=1, description="the least min_clients of a task")
    floor_unit: Unit = Field(default="none", description="the least unit of differential privacy: record or client")
    floor_epsilon: float = Field(default=inf, gt=0, description="the most that a task's openings may cost")
    floor_delta: float = Field(default=1e-4, gt=0, lt=1, description="the largest delta at which epsilon counts")
    floor_collusion: int = Field(default=0, ge=0, description="the least f: key holders that may side with the server")

    @classmethod
    def load(cls, file: Path | None = None, **flags: Flag) -> Self:
        """As above, with what `he-client init` kept in the data directory as the lowest source."""
        first = super().load(file, **flags)
        kept = first.data_dir / SETTINGS_FILE
        if not kept.is_file():
            return first
        return cls._read([kept] if file is None else [kept, file], flags)

    @property
    def floors(self) -> Floors:
        """What this device asks of every task."""
        return Floors(
            self.floor_min_clients, self.floor_unit, self.floor_epsilon, self.floor_delta, self.floor_collusion
        )

    def keep_floors(self) -> None:
        """Write the floors to the data directory: every later command and program finds them there."""
        lines = [f"floor_{name} = {_toml(value)}" for name, value in asdict(self.floors).items()]
        write_durably(self.data_dir / SETTINGS_FILE, ("\n".join(lines) + "\n").encode())


def _toml(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
