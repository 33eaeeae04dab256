"""The newest revocation list that a device has seen, kept in a file: a server that comes with none gains nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from he_party.files import private_directory, write_durably
from he_party.transport import Transport
from he_protocol import documents, limits, paths
from he_protocol.identity.revocation import Revocations

REVOCATIONS_FILE = "revocations.jws"


class RevocationFile:
    """One file, replaced as a whole and never by an older list."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def refresh(self, transport: Transport) -> Revocations:
        """The newer one of the kept list and the server's, which is kept. Raises what `Revocations.read` raises."""
        authority = transport.identity.authority
        known = await asyncio.to_thread(self._read, authority)
        answer = await transport.document("GET", paths.REVOCATIONS, documents.Revoked, limit=limits.revocations())
        offered = answer.revocations
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
        private_directory(self._path.parent)
        write_durably(self._path, token.encode())
