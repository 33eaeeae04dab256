"""Encrypted updates on disk, written before the first send and resent byte for byte.

One folder per update: a file for each section, and `head` (the signed head) written last. A
folder without `head` was never sent and is thrown away once no encryption is under way; a `receipt` ends the
story and frees the sections. Re-encrypting after a crash would put the same vector under fresh noise a second time.
`note` says why the update was not acknowledged the last time; that of a dropped one, of which nothing is sent any
more, is kept for a person to read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Self

from he_party.files import private_directory, private_opener, sync, write_durably
from he_party.locks import locked
from he_protocol.errors import ProblemError
from he_protocol.messages import Message, SignedUpdate, from_json, to_json

HEAD, RECEIPT, NOTE = "head", "receipt", "note"
KEPT_NOTES = 100
"""Dropped updates of a task that are still listed: the newest."""
_UPDATE_ID = re.compile("[0-9a-f]{32}")


class Note(Message, frozen=True):
    """Why an update was not acknowledged at `time` (Unix seconds): a problem's slug, and its text."""

    time: float
    problem: str
    detail: str
    dropped: bool


@dataclass(frozen=True)
class SpooledUpdate:
    """What became of an update so far; of one that was refused, why."""

    task_id: str
    update_id: str
    state: Literal["waiting", "acknowledged", "dropped"]
    problem: str = ""
    detail: str = ""


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

    def open_sections(self) -> dict[str, BinaryIO]:
        """The files of the sections by name, empty, to be written."""
        return {path.name: open(path, "wb", opener=private_opener) for path in self.sections}

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
        """Encrypted updates that are still to be acknowledged: those that were never refused first, then oldest first.

        Unfinished ones are removed, unless one is under way.
        """
        self._remove_abandoned()
        found = []
        for folder in self._folders():
            encrypted, note = self._entry(folder.name), _note(folder)
            if (folder / RECEIPT).exists() or (note and note.dropped):
                _drop_sections(encrypted)
            elif (folder / HEAD).exists():
                found.append((note.time if note else 0.0, folder.stat().st_mtime, encrypted))
        return [encrypted for *_, encrypted in sorted(found, key=lambda one: one[:2])]

    def listed(self) -> list[SpooledUpdate]:
        """All updates that are known here, oldest first."""
        found = []
        for folder in sorted(self._folders(), key=lambda path: path.stat().st_mtime):
            note = _note(folder)
            if (folder / RECEIPT).exists():
                found.append(SpooledUpdate(self._task_id, folder.name, "acknowledged"))
            elif note is not None:
                state: Literal["dropped", "waiting"] = "dropped" if note.dropped else "waiting"
                found.append(SpooledUpdate(self._task_id, folder.name, state, note.problem, note.detail))
            elif (folder / HEAD).exists():
                found.append(SpooledUpdate(self._task_id, folder.name, "waiting"))
        return found

    def find(self, update_id: str) -> EncryptedUpdate | None:
        """The update with this id that is still to be acknowledged."""
        return next((one for one in self.pending() if one.update_id == update_id), None)

    def renew(self, encrypted: EncryptedUpdate, head: SignedUpdate) -> None:
        """Replace the head, durably."""
        write_durably(encrypted.folder / HEAD, to_json(head))

    def note(self, encrypted: EncryptedUpdate, refusal: ProblemError, now: float, *, dropped: bool) -> None:
        """Write down why it was refused. A dropped one is never sent again, and its sections are freed."""
        said = Note(now, refusal.problem.slug, str(refusal), dropped)
        write_durably(encrypted.folder / NOTE, to_json(said))
        if dropped:
            (encrypted.folder / HEAD).unlink(missing_ok=True)
            _drop_sections(encrypted)
            notes = [(note.time, folder) for folder in self._folders() if (note := _note(folder)) and note.dropped]
            for _, folder in sorted(notes)[:-KEPT_NOTES]:
                shutil.rmtree(folder)

    def finish(self, encrypted: EncryptedUpdate, receipt: str) -> None:
        """Keep the server's receipt, drop the ciphertext."""
        write_durably(encrypted.folder / RECEIPT, receipt.encode())
        _drop_sections(encrypted)

    def discard(self, encrypted: EncryptedUpdate) -> None:
        """Forget an update, as if it had never been."""
        shutil.rmtree(encrypted.folder, ignore_errors=True)

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
                if not ((folder / HEAD).exists() or (folder / NOTE).exists()):
                    shutil.rmtree(folder)

    @contextmanager
    def _locked(self, *, shared: bool, wait: bool = True) -> Iterator[None]:
        """A lock for the task's folder, in a file beside it."""
        private_directory(self._root)
        with locked(self._root.with_name(f"{self._root.name}.lock"), shared=shared, wait=wait):
            yield

    def _folders(self) -> list[Path]:
        there = self._root.iterdir() if self._root.exists() else ()
        return [path for path in there if is_update_id(path.name) and path.is_dir()]

    def _entry(self, update_id: str) -> EncryptedUpdate:
        folder = self._root / update_id
        return EncryptedUpdate(self._task_id, update_id, folder, tuple(folder / name for name in self._section_names))


def is_update_id(text: str) -> bool:
    """Whether it is the hex form of 16 bytes: whatever else lies in the folder is nobody's update."""
    return _UPDATE_ID.fullmatch(text) is not None


def _drop_sections(encrypted: EncryptedUpdate) -> None:
    for path in encrypted.sections:
        path.unlink(missing_ok=True)  # a crash may have come in between


def _note(folder: Path) -> Note | None:
    """The note of an update; None without one, or with one that cannot be read."""
    try:
        return from_json((folder / NOTE).read_bytes(), Note)
    except (OSError, ProblemError):
        return None
