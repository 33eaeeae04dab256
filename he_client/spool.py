"""Encrypted updates on disk, written before the first send and resent byte for byte.

One folder per update: a file for each section, and `head` (the signed head) written last. A
folder without `head` was never sent and is thrown away once no encryption is under way; a `receipt` ends the
story and frees the sections. Re-encrypting after a crash would put the same vector under fresh noise a second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from he_party.files import private_directory, sync, write_durably
from he_party.locks import locked
from he_protocol.messages import SignedUpdate, from_json, to_json

HEAD, RECEIPT = "head", "receipt"


@dataclass(frozen=True)
class EncryptedUpdate:
    """One encrypted update in the spool; `sections` are the body's files in the order in which they travel."""

    task_id: str
    update_id: str
    folder: Path
    sections: tuple[Path, ...]

    @property
    def head(self) -> bytes:
        return (self.folder / HEAD).read_bytes()

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(path.stat().st_size for path in self.sections)


class Spool:
    """The encrypted updates of one client for one task."""

    def __init__(self, root: Path, task_id: str, section_names: tuple[str, ...]) -> None:
        self._root = root / task_id
        self._task_id = task_id
        self._section_names = section_names

    @contextmanager
    def encrypting(self) -> Iterator[Self]:
        """Around everything from `begin` to `commit`: meanwhile no process takes it for abandoned."""
        with self._locked(shared=True):
            yield self

    def begin(self, update_id: str) -> EncryptedUpdate:
        """An empty folder for an update that is about to be encrypted."""
        folder = self._root / update_id
        private_directory(self._root)
        folder.mkdir(mode=0o700)
        for above in (self._root, *list(self._root.parents)[:2]):  # also what a crash left made, but not durable
            sync(above)
        return self._entry(update_id)

    def commit(self, encrypted: EncryptedUpdate, head: SignedUpdate) -> None:
        """Make the sections and then the head durable: from now on the update is only ever resent."""
        for path in encrypted.sections:
            sync(path)
        write_durably(encrypted.folder / HEAD, to_json(head))

    def pending(self) -> list[EncryptedUpdate]:
        """Encrypted updates without a receipt, oldest first; unfinished ones are removed, unless one is under way."""
        self._remove_abandoned()
        found = []
        for folder in sorted(self._folders(), key=lambda path: path.stat().st_mtime):
            if not (folder / HEAD).exists():
                continue
            if not (folder / RECEIPT).exists():
                found.append(self._entry(folder.name))
            else:
                _drop_sections(self._entry(folder.name))
        return found

    def finish(self, encrypted: EncryptedUpdate, receipt: str) -> None:
        """Keep the server's receipt, drop the ciphertext."""
        write_durably(encrypted.folder / RECEIPT, receipt.encode())
        _drop_sections(encrypted)

    def discard(self, encrypted: EncryptedUpdate) -> None:
        """Forget an update that the server refused for good."""
        shutil.rmtree(encrypted.folder)

    def acknowledged(self) -> int:
        """How many updates of this task the server has acknowledged."""
        return sum((folder / RECEIPT).exists() for folder in self._folders())

    def header(self, encrypted: EncryptedUpdate) -> SignedUpdate:
        return from_json(encrypted.head, SignedUpdate)

    def _remove_abandoned(self) -> None:
        if not self._root.exists():
            return
        with suppress(BlockingIOError), self._locked(shared=False, wait=False):
            for folder in self._folders():
                if not (folder / HEAD).exists():
                    shutil.rmtree(folder)

    @contextmanager
    def _locked(self, *, shared: bool, wait: bool = True) -> Iterator[None]:
        """A lock for the task's folder, in a file beside it."""
        private_directory(self._root)
        with locked(self._root.with_name(f"{self._root.name}.lock"), shared=shared, wait=wait):
            yield

    def _folders(self) -> list[Path]:
        return [path for path in self._root.iterdir() if path.is_dir()] if self._root.exists() else []

    def _entry(self, update_id: str) -> EncryptedUpdate:
        folder = self._root / update_id
        return EncryptedUpdate(self._task_id, update_id, folder, tuple(folder / name for name in self._section_names))


def _drop_sections(encrypted: EncryptedUpdate) -> None:
    for path in encrypted.sections:
        path.unlink(missing_ok=True)  # a crash may have come in between
