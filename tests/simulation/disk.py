"""A disk that keeps only what was synced: files' bytes by fsync of the file, names by fsync of their folder."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

DATABASE = (".db", ".db-wal", ".db-journal")
"""SQLite syncs for itself, through the C library: what it has written stays, and what it has removed is gone."""
UNSTORED = ".db-shm"
"""Memory that SQLite shares by way of a file."""

_number = itertools.count()


class Disk:
    """A folder in memory, and what of it a power cut would leave."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bytes: dict[int, bytes] = {}
        self._names: dict[str, dict[str, int]] = {}

    @classmethod
    def of(cls, files: dict[str, bytes], below: Path) -> Disk:
        """A disk on which these files (mode 0600) are durable."""
        disk = cls(below / str(next(_number)))
        disk.root.mkdir(parents=True)
        for name, data in files.items():
            path = disk.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o600)
        disk._adopt()
        return disk

    def sync(self, descriptor: int, now: float) -> None:
        """fsync of an open file or folder; sets its time, so that ages are those of the virtual clock."""
        found, link = os.fstat(descriptor), f"/proc/self/fd/{descriptor}"
        os.utime(descriptor, (now, now))
        if stat.S_ISDIR(found.st_mode):
            self._names[self._name(str(Path(link).readlink()))] = _entries(descriptor)
        else:
            self._bytes[found.st_ino] = Path(link).read_bytes()

    def survivor(self, *, power: bool) -> Disk:
        """The disk after a crash: all that was written, or after a power cut all that was synced."""
        after = Disk(self.root.parent / str(next(_number)))
        after.root.mkdir()
        self._copy("", after, power)
        if power:
            after._adopt()
        return after

    def files(self) -> dict[str, bytes]:
        """Everything on the disk, by name."""
        found = (path for path in self.root.rglob("*") if path.is_file() and not path.name.endswith(UNSTORED))
        return {self._name(str(path)): path.read_bytes() for path in found}

    def _copy(self, folder: str, after: Disk, power: bool) -> None:
        here = {entry.name: entry for entry in os.scandir(self.root / folder)}
        kept = self._names.get(folder, {})
        inodes: dict[str, int] = {}
        # A removal that was not synced may be undone; a name that was not synced may be gone.
        databases = {name for name in here if name.endswith(DATABASE)}
        names = databases | {name for name in kept if not name.endswith(DATABASE)} if power else set(here)
        for name in sorted(names):
            path, target = f"{folder}/{name}".lstrip("/"), after.root / folder / name
            if name.endswith(UNSTORED):
                continue
            if path in self._names or (name in here and here[name].is_dir()):
                target.mkdir()
                if (self.root / path).is_dir():
                    self._copy(path, after, power)
                continue
            inode = kept.get(name, -1) if power else here[name].inode()
            if power and not name.endswith(DATABASE):
                data = self._bytes.get(inode, b"")
            else:
                data = (self.root / path).read_bytes()
            target.write_bytes(data)
            target.chmod(0o600)
            if name in here:
                os.utime(target, ns=(here[name].stat().st_atime_ns, here[name].stat().st_mtime_ns))
            if inode in self._bytes:
                after._bytes[target.stat().st_ino] = self._bytes[inode]
            inodes[name] = inode
        if not power:
            new = {name: (after.root / folder / name).stat().st_ino for name in names if not name.endswith(UNSTORED)}
            after._names[folder] = {
                name: new[name] for name, inode in kept.items() if name in new and _is(inode, here[name])
            }

    def _adopt(self) -> None:
        """Everything that is here is durable."""
        for folder, _, files in os.walk(self.root):
            self._names[self._name(folder)] = _entries(folder)
            for name in files:
                if not name.endswith((*DATABASE, UNSTORED)):
                    path = Path(folder, name)
                    self._bytes[path.stat().st_ino] = path.read_bytes()

    def _name(self, path: str) -> str:
        return path[len(str(self.root)) + 1 :]


def _entries(folder: str | int) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _is(inode: int, entry: os.DirEntry[str]) -> bool:
    return entry.inode() == inode
