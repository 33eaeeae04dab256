"""Options that several commands of `he-keys` take, and what they open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from he_client.console import Format
from he_client.identity import Identity
from keys.holder import KeyHolder
from keys.ledger import LEDGER_FILE, Ledger
from keys.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="identity, secrets and ledger [HUSHSUM_KEYS_DATA_DIR]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML settings file")]
TlsCa = Annotated[Path | None, typer.Option(help="PEM file that vouches for the server's certificate")]
Passphrase = Annotated[
    str, typer.Option(envvar="HUSHSUM_PASSPHRASE", help="protects the key file; better set by environment")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="text or json")]


async def open_holder(settings: Settings) -> KeyHolder:
    """The holder in the settings' directory; the caller closes its ledger. Raises `bad-key-file`."""
    secret = settings.passphrase.get_secret_value()
    return KeyHolder(
        identity=Identity.load(settings.data_dir, secret),
        ledger=await Ledger.open(settings.data_dir / LEDGER_FILE),
        directory=settings.data_dir,
        floor=settings.floor,
        least_f=settings.least_f,
        passphrase=secret,
        require_revocations=settings.require_revocations,
    )
