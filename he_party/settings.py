"""Settings of every program: TOML file, then environment, then flags."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from he_party.files import write_durably
from he_party.text import read_toml
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

SETTINGS_FILE = "settings.toml"
"""In a party's data directory: what `init` was told, under every other source."""
Flag = str | int | float | Path | None


class FileSettings(BaseSettings):
    """Settings that stand in TOML files, too; those in the data directory are found by every command. Subclasses name
    their environment prefix."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    files: ClassVar[Sequence[Path]] = ()

    data_dir: Path = Field(default=Path(), description="where the party's files live")
    group_readable_keys: bool = Field(
        default=False, description="use a key file that its group may read, too, as Kubernetes mounts a secret"
    )

    @field_validator("*")
    @classmethod
    def _nameable(cls, value: object) -> object:
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("no file's name has a NUL byte")
        return value

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
        return init_settings, env_settings, InitSettingsSource(settings_cls, _tables(cls.files))

    @classmethod
    def load(cls, file: Path | None = None, **flags: Flag) -> Self:
        """Read the settings; flags that are None do not count. Raises `bad-settings`, naming the setting.

        The lowest source is settings.toml in the data directory, if it is there.
        """
        if file is not None and not file.exists():
            raise ProblemError(BAD_SETTINGS, f"there is no settings file {file}")
        files = [file] if file is not None else []
        first = cls._read(files, flags)
        kept = first.data_dir / SETTINGS_FILE
        if not kept.is_file():
            return first
        found = cls._read([kept, *files], flags)
        if found.data_dir != first.data_dir:
            raise ProblemError(BAD_SETTINGS, f"{kept} names another data_dir", got=found.data_dir)
        return found

    @classmethod
    def keep(cls, data_dir: Path, settings: Mapping[str, str | float]) -> None:
        """Write these settings to the data directory, in place of those that were kept there."""
        lines = [f"{name} = {_toml(value)}\n" for name, value in settings.items()]
        write_durably(data_dir / SETTINGS_FILE, "".join(lines).encode())

    @classmethod
    def _read(cls, files: list[Path], flags: Mapping[str, Flag]) -> Self:
        """Of several files the later one wins."""
        reader = type(cls.__name__, (cls,), {"files": files, "__module__": cls.__module__})
        try:
            found: Self = reader(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise ProblemError(BAD_SETTINGS, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except SettingsError as error:
            raise ProblemError(BAD_SETTINGS, f"the environment: {error}") from None
        return found


def _toml(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _tables(files: Sequence[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in files:
        found |= read_toml(file, BAD_SETTINGS)
    return found


class PartySettings(FileSettings):
    """Settings that clients and key holders share."""

    tls_ca: Path | None = Field(default=None, description="PEM file of the authority behind the server's certificate")
    tls_cert: Path | None = Field(
        default=None, description="PEM file of our certificate and its chain, for a server or a proxy that asks for one"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its key, where that is not in tls_cert")

    @property
    def tls(self) -> ssl.SSLContext | None:
        """A context that trusts `tls_ca` and shows `tls_cert`, or None: the system's trust, and no certificate.

        Raises `bad-settings` for a file that cannot be used, a certificate and a key that are no pair, or a key under a
        passphrase.
        """
        if self.tls_ca is self.tls_cert is self.tls_key is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca and os.fspath(self.tls_ca))
        except OSError as error:
            raise ProblemError(BAD_SETTINGS, f"tls_ca {self.tls_ca}: {error}") from None
        if self.tls_cert is not None:
            self._show(context, self.tls_cert)
        elif self.tls_key is not None:
            raise ProblemError(BAD_SETTINGS, "tls_key is given without tls_cert")
        return context

    def _show(self, context: ssl.SSLContext, certificate: Path) -> None:
        """Have the context show our certificate. OpenSSL would ask for a key's passphrase at the terminal."""
        named = f"tls_cert {certificate}" + (f", tls_key {self.tls_key}" if self.tls_key else "")

        def no_passphrase() -> str:
            raise ProblemError(BAD_SETTINGS, named, expected="a key without a passphrase")

        try:
            context.load_cert_chain(certificate, self.tls_key, no_passphrase)
        except OSError as error:
            raise ProblemError(BAD_SETTINGS, f"{named}: {error}") from None
