"""The newest revocation list that a device has seen, kept in a file: a server that comes with none gains nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from he_client.transport import Transport
from he_protocol import api
from he_protocol.revocation import Revocations

REVOCATIONS_FILE = "revocations.jws"


class RevocationFile:
    """One file, replaced as a whole and never by an older list."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def refresh(self, transport: Transport) -> Revocations:
        """The newer one of the kept list and the server's, which is kept. Raises what `Revocations.read` raises."""
        authority = transport.identity.authority
        known = await asyncio.to_thread(self._read, authority)
        offered = (await transport.document("GET", api.REVOCATIONS, api.Revoked)).revocations
        if not offered or offered == known.token:
            return known
        newer = await asyncio.to_thread(Revocations.read, offered, authority)
        if newer.number <= known.number:
            return known
        await asyncio.to_thread(self._write, offered)
        return newer

    def _read(self, authority: bytes) -> Revocations:
        return Revocations.read(self._path.read_text(), authority) if self._path.exists() else Revocations()

    def _write(self, token: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(token)
        partial.replace(self._path)
