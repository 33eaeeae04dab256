"""A committee in memory: what the key holders of a task do, without programs, ledgers or a server between them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

from he_client.schemes import Encryptor, make_encryptor
from he_holder.ceremony import messages
from he_holder.schemes import ShareMaker, make_dealer, make_share_maker
from he_protocol.arithmetic import residues
from he_protocol.messages import SectionEntry, UpdateHeader
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.scheme import combine
from he_protocol.task import Task
from he_testing.board import MemoryBoard
from he_testing.parties import Parties


@dataclass(frozen=True)
class Encrypted:
    """One encrypted update: its header, and the sections of its body by name."""

    header: UpdateHeader
    sections: dict[str, bytes]


class MemoryCommittee:
    """The key holders of a task of `parties`. They judge nothing and keep nothing: what is asked for is opened."""

    def __init__(self, task: Task, parties: Parties) -> None:
        self.task = task
        self.parties = parties

    @cached_property
    def ceremony(self) -> tuple[list[messages.Seeds], bytes]:
        """What the ceremony leaves: every holder's seeds and the packed joint key; nothing for a scheme without one."""
        task, hpke = self.task, self.parties.hpke
        if not task.scheme.ceremony:
            return [{} for _ in hpke], b""
        own = [messages.draw_seeds(task.sharing, i) for i in range(len(hpke))]
        posts = [messages.contribute(task, i, seeds) for i, seeds in enumerate(own)]
        seeds = [messages.subshare_seeds(task, i, own[i], posts, key) for i, key in enumerate(hpke)]
        dealer = make_dealer(task)
        packed = [
            {subshare: residues.pack(dealer.public_key_share(seed), dealer.layout) for subshare, seed in mine.items()}
            for mine in seeds
        ]
        seen = messages.transcript([self.parties.committee[i].key.sign(post) for i, post in enumerate(posts)])
        commitments = [messages.commit(task, i, seen, mine) for i, mine in enumerate(packed)]
        agreed = messages.check_commitments(task, commitments)
        bodies = [messages.reveal(task, i, seen, mine)[1] for i, mine in enumerate(packed)]
        messages.check_reveals(task, dealer.layout, bodies, agreed)
        return seeds, messages.joint_key(dealer.layout, bodies)

    async def board(self) -> MemoryBoard:
        """The board as clients find it: with every holder's confirmation of the joint key."""
        board, key = MemoryBoard(), self.ceremony[1]
        for index, holder in enumerate(self.parties.committee):
            message = holder.key.sign(messages.confirm(self.task, index, bytes(32), key))
            await board.post("confirmation", holder.name, message, key if index == 0 else b"")
        return board

    async def encryptor(self, client: str, cache: Path) -> Encryptor:
        """What the client of this name encrypts with; `cache` is a folder for public keys."""
        return await make_encryptor(self.task, client, await self.board(), cache)

    async def encrypt(self, client: str, integers: Integers, cache: Path) -> Encrypted:
        """One update of a client, of `task.length` integers. Raises ValueError when a scheme writes other sections
        than it declares."""
        sections, update_id = {section.name: BytesIO() for section in self.task.body}, secrets.token_bytes(16)
        encryptor = await self.encryptor(client, cache)

        def write(name: str, data: bytes | memoryview) -> None:
            if name not in sections:
                raise ValueError(f"the encryptor wrote {name!r}; Scheme.body has {', '.join(sections)}")
            sections[name].write(data)

        await encryptor.encrypt(update_id, lambda start, stop: integers[start:stop], write)
        body = {name: file.getvalue() for name, file in sections.items()}
        for section in self.task.body:
            if len(body[section.name]) != section.size:
                what = f"section {section.name!r} has {len(body[section.name])} bytes; Scheme.body says {section.size}"
                raise ValueError(what)
        entries = tuple(SectionEntry(name, len(data), hashlib.sha256(data).digest()) for name, data in body.items())
        now = int(self.parties.authority.clock())
        about = (self.task.hash, self.task.config.epoch, update_id, client, 0, now)
        return Encrypted(UpdateHeader(*about, entries), body)

    def share_maker(self, holder: int) -> ShareMaker:
        """What one holder opens sums with."""
        return make_share_maker(self.task, holder, self.parties.hpke[holder], self.ceremony[0][holder])

    def open(self, updates: Sequence[Encrypted]) -> Integers:
        """The sum of these updates, as the first holders that are enough open it."""
        task, released = self.task, dict[int, bytes]()
        for holder in range(task.config.committee.threshold):
            total = self.share_maker(holder).begin()
            for update in updates:
                total.add(update.header, update.sections[task.section("key").name])
            released |= dict(total.release(bytes(32), 0))
        shares = task.scheme.share_layout(task.length)
        vectors = [residues.unpack(released[i], shares) for i in range(task.sharing.subshares)]
        return combine(task.scheme, _folded(task, updates), vectors, task.length, len(updates), task.epoch_id)


def _folded(task: Task, updates: Sequence[Encrypted]) -> residues.Residues:
    """What a server adds up."""
    section = task.section("sum")
    assert section.layout is not None, "a sum section has a layout"
    total = section.layout.zeros()
    for update in updates:
        rows = total.reshape(section.layout.rows, section.layout.degree)
        residues.fold(rows, update.sections[section.name], section.layout)
    return total
