"""One encrypted update to its server in pieces, by tus 1.0.0: a lost connection costs at most what was under way.

The client stores no state for it: creating an upload of the same update again returns the existing one,
and the server says how far it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from he_client.spool import EncryptedUpdate
from he_party.pieces import Piece
from he_party.transport import Answer, Transport
from he_protocol import documents, frames, paths, tus
from he_protocol.errors import ProblemError
from he_protocol.messages import from_json
from he_protocol.problems import REFUSED_BETWEEN, UNEXPECTED_ANSWER
from he_protocol.task import Task

CHUNK_BYTES = 8 << 20
LARGEST_BETWEEN, LEAST_CHUNK = 1 << 20, 1 << 14
"""Where something between takes no chunk of 8 MiB, chunks are halved from 1 MiB, which is what nginx takes, down."""
TRIES = 5
"""How often in a row a chunk may end where it began."""
_VERSION = {"Tus-Resumable": tus.VERSION}
_LOCATION = re.compile(r"(?:https?://[^/?#]+)?(?:/[^?#]*)?(" + paths.upload_path("[0-9a-f]{32}") + ")")
"""A proxy may have put its own name and a path before the server's."""


class ResumableUpload:
    """The upload of one encrypted update, from wherever it stands."""

    def __init__(self, transport: Transport, task: Task, encrypted: EncryptedUpdate) -> None:
        self._transport = transport
        self._task = task
        self._update_id = bytes.fromhex(encrypted.update_id)
        self._pieces: tuple[Piece, ...] = (frames.start(encrypted.head), *encrypted.sections)
        self._length = len(frames.start(encrypted.head)) + encrypted.size
        self._chunk = CHUNK_BYTES

    async def send(self) -> documents.UpdateReceipt:
        """Raises what the PUT of the update would; `unexpected-answer` from a server that makes no progress."""
        try:
            return await self._send()
        except ProblemError as refusal:
            if refusal.problem.upload != "begin-anew":
                raise
        return await self._send()

    async def _send(self) -> documents.UpdateReceipt:
        path = await self._begin()
        offset, stuck = await self._ask(path), 0
        while offset < self._length:
            try:
                reached = self._offset(await self._append(path, offset))
            except ProblemError as refusal:
                if refusal.problem == REFUSED_BETWEEN and self._chunk > LEAST_CHUNK:
                    self._chunk = min(self._chunk // 2, LARGEST_BETWEEN)
                    continue
                if refusal.problem.upload != "ask-offset":
                    raise
                reached = await self._ask(path)
            stuck = stuck + 1 if reached <= offset else 0
            if stuck == TRIES:
                raise ProblemError(UNEXPECTED_ANSWER, "the upload makes no progress", got=f"offset {reached}")
            offset = reached
        answer = await self._transport.request("GET", path, headers=_VERSION)
        return from_json(answer.body, documents.UpdateReceipt)

    async def _begin(self) -> str:
        about = {"Upload-Length": str(self._length), "Upload-Metadata": tus.metadata(self._update_id)}
        answer = await self._transport.request(
            "POST",
            paths.uploads_path(self._task.id),
            audience=self._task.config.server.name,
            headers=_VERSION | about,
        )
        location = answer.headers.get("Location", "")
        found = _LOCATION.fullmatch(location)
        if found is None:
            raise ProblemError(UNEXPECTED_ANSWER, "Location", expected=_LOCATION.pattern, got=location[:80])
        return found[1]

    async def _ask(self, path: str) -> int:
        return self._offset(await self._transport.request("HEAD", path, headers=_VERSION))

    async def _append(self, path: str, offset: int) -> Answer:
        chunk = await asyncio.to_thread(_read, self._pieces, offset, self._chunk)
        about = {
            "Content-Type": tus.CONTENT_TYPE,
            "Upload-Offset": str(offset),
            "Upload-Checksum": await asyncio.to_thread(tus.checksum, chunk),
        }
        return await self._transport.request("PATCH", path, pieces=[chunk], headers=_VERSION | about)

    def _offset(self, answer: Answer) -> int:
        text = answer.headers.get("Upload-Offset", "")
        if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= self._length):
            raise ProblemError(UNEXPECTED_ANSWER, "Upload-Offset", expected=f"at most {self._length}", got=text[:80])
        return int(text)


def _read(pieces: Sequence[Piece], offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on of the concatenated pieces."""
    found = bytearray()
    for piece in pieces:
        wanted = size - len(found)
        if isinstance(piece, bytes | memoryview):
            found += piece[offset : offset + wanted]
            length = len(piece)
        else:
            length = piece.stat().st_size
            if offset < length:
                with piece.open("rb") as file:
                    file.seek(offset)
                    found += file.read(wanted)
        offset = max(0, offset - length)
        if len(found) == size:
            break
    return bytes(found)
