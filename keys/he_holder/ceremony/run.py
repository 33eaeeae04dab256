"""Running the key ceremony over a bulletin board.

The board is not trusted: every post is signed by its holder, and a board that shows holders
different posts only makes the ceremony fail. Every step can be repeated after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from he_holder.ceremony import messages as ceremony
from he_holder.holder import EpochSecret, KeyHolder, SubshareSeed
from he_holder.schemes import make_dealer
from he_party.board import Board
from he_party.keyfile import read_private, write_private
from he_protocol.arithmetic import residues
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import verify
from he_protocol.messages import Commitment, Confirmation, Contribution, Message, Post, Reveal
from he_protocol.problems import CEREMONY_CONFLICT, NO_QUORUM, NOT_ADDRESSED, WRONG_EPOCH, WRONG_TASK
from he_protocol.task import Task

Progress = Callable[[str], None]
P = TypeVar("P", bound=Post)
POLL_SECONDS = 0.3
PATIENCE = 600.0
"""Seconds to wait for the other holders in each phase."""


def silent(_: str) -> None:
    """Progress that nobody wants to see."""


class Ceremony:
    """One holder's run of one task's ceremony."""

    def __init__(
        self, holder: KeyHolder, task: Task, board: Board, *, patience: float = PATIENCE, progress: Progress = silent
    ) -> None:
        self._holder = holder
        self._task = task
        self._board = board
        self._index = holder.index(task)
        self._dealer = make_dealer(task)
        self._patience = patience
        self._progress = progress

    async def run(self) -> bytes:
        """SHA-256 of the joint key that all holders confirmed; our secret is then stored.

        Raises `ceremony-conflict`, `commitment-broken`, or `no-quorum` when the others do not answer
        within `patience` seconds of a phase.
        """
        task, index = self._task, self._index
        own = self._own_seeds()
        await self._post("contribution", await asyncio.to_thread(ceremony.contribute, task, index, own))
        tokens, contributions = await self._collect("contribution", Contribution)
        seen = ceremony.transcript(tokens)
        hpke = await asyncio.to_thread(self._holder.hpke, task)
        seeds = ceremony.subshare_seeds(task, index, own, contributions, hpke)
        packed = await asyncio.to_thread(self._public_key_shares, seeds)
        await self._post("commitment", ceremony.commit(task, index, seen, packed))
        agreed = ceremony.check_commitments(task, (await self._collect("commitment", Commitment))[1])
        message, body = ceremony.reveal(task, index, seen, packed)
        await self._post("reveal", message, body)
        await self._collect("reveal", Reveal)
        bodies = await self._bodies()
        layout = self._dealer.layout
        ceremony.check_reveals(task, layout, bodies, agreed)
        key = await asyncio.to_thread(ceremony.joint_key, layout, bodies)
        self._store("key", seeds)
        mine = ceremony.confirm(task, index, seen, key)
        await self._post("confirmation", mine, key if index == 0 else b"")
        _, others = await self._collect("confirmation", Confirmation)
        if {(other.key, other.transcript) for other in others} != {(mine.key, mine.transcript)}:
            raise ProblemError(CEREMONY_CONFLICT, "the holders computed different joint keys")
        return mine.key

    def _own_seeds(self) -> ceremony.Seeds:
        """Our contribution, drawn once: a restart in the middle must not contribute something else."""
        path = self._holder.secret_path(self._task, "draws")
        if path.exists():
            drawn = read_private(path, EpochSecret, self._holder.passphrase)
            return {entry.subshare: entry.seed for entry in drawn.seeds}
        seeds = ceremony.draw_seeds(self._task.sharing, self._index)
        self._store("draws", seeds)
        return seeds

    def _store(self, kind: str, seeds: ceremony.Seeds) -> None:
        entries = tuple(SubshareSeed(subshare, seed) for subshare, seed in sorted(seeds.items()))
        secret = EpochSecret(self._task.hash, self._task.config.epoch, entries)
        path = self._holder.secret_path(self._task, kind)
        write_private(path, secret, self._holder.passphrase, replace=True)

    def _public_key_shares(self, seeds: ceremony.Seeds) -> dict[int, bytes]:
        return {
            subshare: residues.pack(self._dealer.public_key_share(seed), self._dealer.layout)
            for subshare, seed in seeds.items()
        }

    async def _post(self, phase: str, message: Post, body: bytes = b"") -> None:
        self._progress(f"{phase}: posting")
        posted = (await self._board.posts(phase)).get(message.holder)
        if self._is_ours(posted, type(message)):
            return  # from before a restart; contributions are sealed afresh each time
        await self._board.post(phase, message.holder, self._holder.identity.key.sign(message), body)

    def _is_ours(self, token: str | None, kind: type[Message]) -> bool:
        """Whether a post is one that we have signed, whatever name the board gives it."""
        try:
            return token is not None and bool(verify(token, kind, self._holder.identity.key.public))
        except ProblemError:
            return False

    async def _collect(self, phase: str, kind: type[P]) -> tuple[list[str], list[P]]:
        """Every holder's post of a phase in holder order: as signed, and verified."""
        holders = self._task.config.committee.holders
        self._progress(f"{phase}: waiting for {len(holders)} holders")
        posts: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._patience):
                while len(posts := await self._board.posts(phase)) < len(holders):  # noqa: ASYNC110 - the board is remote
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            missing = [holder.name for holder in holders if holder.name not in posts]
            raise ProblemError(
                NO_QUORUM, f"no {phase} from {', '.join(missing)} within {self._patience:.0f} s"
            ) from None
        tokens = [posts[holder.name] for holder in holders]
        messages = [verify(token, kind, holder.key) for token, holder in zip(tokens, holders, strict=True)]
        for message, holder in zip(messages, holders, strict=True):
            check_bound(self._task, holder.name, message)
        return tokens, messages

    async def _bodies(self) -> list[bytes]:
        bodies = []
        for index, holder in enumerate(self._task.config.committee.holders):
            size = self._dealer.layout.size * len(ceremony.revealed_shares(self._task.sharing, index))
            bodies.append(await self._board.body("reveal", holder.name, size) if size else b"")
        return bodies


def check_bound(task: Task, holder: str, message: Post) -> None:
    """A post is of this task, epoch and holder.

    Raises `wrong-task`, `wrong-epoch` or `not-addressed`.
    """
    kind = type(message).__name__
    if message.task_hash != task.hash:
        raise ProblemError(WRONG_TASK, f"{kind} of {holder!r}", expected=task.id, got=message.task_hash.hex())
    if message.epoch != task.config.epoch:
        raise ProblemError(WRONG_EPOCH, f"{kind} of {holder!r}", expected=task.config.epoch, got=message.epoch)
    if message.holder != holder:
        raise ProblemError(NOT_ADDRESSED, f"a {kind} posted as {holder!r}", expected=holder, got=message.holder)
