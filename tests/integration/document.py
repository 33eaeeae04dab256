"""The command blocks of a document, typed as they stand: a reader's terminal."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from he_testing.deployment import CLEAN

Folders = Mapping[str, Sequence[str]]
HOLDERS, CLIENTS = "every key holder", "every client"
"""What a comment may say of its command: the folders that stand in the place of the first one are `Folders`."""
SERVE, RUN = "he-server serve", "he-holder run"
SECONDS = 120.0
COMMENT = "        # "
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command, for each of the folders that it is said to be for."""

    text: str
    comment: str

    def each(self, folders: Folders) -> list[str]:
        """As it is typed: once, or for every folder."""
        for words, (first, *others) in folders.items():
            if words in self.comment:
                return [self.text, *(self.text.replace(first, other) for other in others)]
        return [self.text]


def commands(document: str) -> list[Command]:
    """All commands of all blocks without a language, in their order."""
    found = []
    for _, block in filter(lambda found: not found[0], BLOCK.findall(document)):
        for line in block.replace("\\\n", " ").splitlines():
            text, _, comment = line.partition(COMMENT)
            found.append(Command(" ".join(text.split()), comment.strip()))
    return found


@dataclass
class Terminal:
    """Runs commands in a folder. What runs until it is stopped is stopped when it is started again, and at the end."""

    folder: Path
    environment: Mapping[str, str]
    port: int
    folders: Folders
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)

    async def type(self, command: Command) -> None:
        """All at once where it is for several folders: a training round needs them together."""
        await asyncio.gather(*(self._type(text) for text in command.each(self.folders)))

    async def _type(self, text: str) -> None:
        if text.startswith((SERVE, RUN)):
            await self._start(text)
            return
        process = await self._shell(text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        said, _ = await asyncio.wait_for(process.communicate(b"y\n"), SECONDS)
        self.printed.append(said.decode())
        assert process.returncode == 0, f"{text}\n{said.decode()}"

    async def _start(self, text: str) -> None:
        name = "server" if text.startswith(SERVE) else next(each for each in self.folders[HOLDERS] if each in text)
        if (before := self.running.pop(name, None)) is not None:
            before.terminate()
            await before.wait()
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            self.running[name] = await self._shell(f"exec {text}", stdout=file, stderr=file)
        async with asyncio.timeout(SECONDS):
            while not (self._listens() if name == "server" else b"watching" in log.read_bytes()):
                assert self.running[name].returncode is None, log.read_text()
                await asyncio.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def _shell(self, text: str, *, stdout: object, stderr: object) -> asyncio.subprocess.Process:
        path = f"{Path(sys.executable).parent}:{CLEAN['PATH']}"
        environment = CLEAN | {"PATH": path} | dict(self.environment)
        return await asyncio.create_subprocess_shell(
            text,
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,  # type: ignore[arg-type]
            stderr=stderr,  # type: ignore[arg-type]
            cwd=self.folder,
            env=environment,
            executable="/bin/bash",
        )

    async def stop(self) -> None:
        """The server last: the others talk to it."""
        for name in sorted(self.running, key="server".__eq__):
            with suppress(ProcessLookupError):  # a holder that has left its only task has ended
                self.running[name].terminate()
            await self.running[name].wait()
