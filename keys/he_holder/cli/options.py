"""Options that several commands of `he-holder` take, and what they open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from he_holder.holder import KeyHolder
    from he_holder.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="identity, secrets and ledger [HUSHSUM_HOLDER_DATA_DIR]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML settings file")]
TlsCa = Annotated[Path | None, typer.Option(help="PEM file that vouches for the server's certificate")]

MinClientsFloor = Annotated[int | None, typer.Option(help="our own minimum of clients per sum")]


@asynccontextmanager
async def open_holder(settings: Settings) -> AsyncIterator[KeyHolder]:
    """The holder in the settings' directory. Raises `bad-key-file`, or `bad-settings` for another party's directory."""
    from he_holder.holder import KeyHolder
    from he_holder.ledger import LEDGER_FILE, Ledger
    from he_party.identity import Identity
    from he_party.keyfile import environment_passphrase

    secret = environment_passphrase()
    identity = Identity.load(settings.data_dir, secret, role="holder", group_may_read=settings.group_readable_keys)
    ledger = await Ledger.open(settings.data_dir / LEDGER_FILE)
    try:
        yield KeyHolder(
            identity=identity,
            ledger=ledger,
            directory=settings.data_dir,
            min_clients_floor=settings.min_clients_floor,
            least_f=settings.least_f,
            passphrase=secret,
            require_revocations=settings.require_revocations,
        )
    finally:
        await ledger.close()
