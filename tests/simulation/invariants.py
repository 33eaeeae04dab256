"""What must hold after every operation, and at the end, whatever happened in between."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache

import numpy as np

from he_protocol import framing
from he_protocol.api import RoundState
from he_protocol.messages import Manifest, Share
from he_protocol.problems import NO_QUORUM, TOO_FEW_CLIENTS
from he_protocol.signing import payload_hash, read_unverified
from he_protocol.task import Task
from he_server.rounds import TRANSITIONS

from .machine import Machine
from .world import OPENING, SCALE, THRESHOLD, World

EXCUSED = frozenset({NO_QUORUM.urn, TOO_FEW_CLIENTS.urn})
"""Failures that honest parties can meet; any other one of a round means that something was lost or spoilt."""


class Violation(AssertionError):
    """`name` says which invariant."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class Observer:
    """Sees every wire and every disk, and remembers."""

    world: World

    def __init__(self) -> None:
        self._violations: list[Violation] = []
        self._writing: dict[object, bytearray] = {}
        self._released: dict[tuple[str, str, int], set[tuple[bytes, tuple[bytes, ...]]]] = defaultdict(set)
        self._manifests: dict[bytes, Manifest] = {}
        self._holders_of: dict[bytes, set[str]] = defaultdict(set)
        self._versions: dict[tuple[str, int], tuple[int | None, str]] = {}
        self._states: dict[tuple[str, int], RoundState] = {}
        self._expected: set[tuple[str, int]] = set()

    # -- on the wire --------------------------------------------------------------------------------

    def watch(self, machine: Machine, end: object, data: bytes) -> None:
        """A write of a key holder that begins or continues the release of a share."""
        if not machine.name.startswith("holder"):
            return
        line = data.split(b"\r\n", 1)[0]
        if line.startswith(b"PUT ") and b"/shares/" in line:
            _, _, _, task, _, number, *_ = line.split(b" ")[1].decode().split("/")
            if self._decision(machine, task, int(number)) is None:
                detail = f"{machine.name} sends a share of round {number} without a decision"
                self._violate("decided before released", detail)
            self._writing[end] = bytearray()
            data = data.split(b"\r\n\r\n", 1)[1]
        elif line.startswith(b"GET "):
            self._writing.pop(end, None)
        if end in self._writing:
            self._writing[end] += data
            self._share(machine, end)

    def _share(self, machine: Machine, end: object) -> None:
        sent = bytes(self._writing[end])
        if len(sent) < framing.PREFIX_BYTES or len(sent) < framing.PREFIX_BYTES + framing.head_size(
            sent[: framing.PREFIX_BYTES]
        ):
            return None
        del self._writing[end]
        share = read_unverified(framing.split(sent)[0].decode(), Share)
        token = self._decision(machine, share.task_hash.hex(), share.round)
        if token is None or payload_hash(token) != share.manifest:
            return self._violate("decided before released", f"{machine.name}: the ledger has another manifest")
        key = machine.name, share.task_hash.hex(), share.round
        self._released[key].add((share.manifest, tuple(part.sha256 for part in share.parts)))
        if len(self._released[key]) > 1:
            self._violate("one share per round", f"{machine.name} released two for round {share.round}")
        self._manifests[share.manifest] = read_unverified(token, Manifest)
        self._holders_of[share.manifest].add(machine.name)
        self._check_openings(machine)
        return None

    def _check_openings(self, machine: Machine) -> None:
        mine = [m for m, holders in self._holders_of.items() if machine.name in holders]
        opened = [m for m, holders in self._holders_of.items() if len(holders) >= THRESHOLD]
        for what, manifests in ((f"shares of {machine.name}", mine), ("openings", opened)):
            counts = Counter(entry.update_id for m in manifests for entry in self._manifests[m].updates)
            for update, count in counts.items():
                if count > 1:
                    self._violate("no update in two openings", f"{update.hex()} is in {count} {what}")

    def _decision(self, machine: Machine, task: str, number: int) -> str | None:
        """The manifest that is durably accepted for a round in a holder's ledger."""
        with closing(sqlite3.connect(f"file:{machine.disk.root}/ledger.db?mode=ro", uri=True)) as ledger:
            query = "SELECT manifest FROM openings WHERE task_hash = ? AND round = ?"
            row = ledger.execute(query, (bytes.fromhex(task), number)).fetchone()
        return None if row is None else str(row[0])

    def _violate(self, name: str, detail: str) -> None:
        self._violations.append(Violation(name, detail))

    # -- after every operation ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise the first violation, seen on the wire or in the server's database now."""
        if self._violations:
            raise self._violations[0]
        self._check_updates()
        self._check_models()
        self._check_rounds()

    def _check_updates(self) -> None:
        rows = set(self.world.seen("SELECT task_hash, update_id FROM updates"))
        for task, update in self.world.record.acknowledged:
            if (task, update) not in rows:
                raise Violation("an acknowledged update is kept", f"{update} is gone")
        for update, count in Counter(update for _, update in rows).items():
            if count > 1:
                raise Violation("an update is of one task", f"{update} was accepted by {count}")

    def _check_models(self) -> None:
        found = {
            (task, version): (round_id, sha256)
            for task, version, round_id, sha256 in self.world.seen(
                "SELECT task_hash, version, round_id, sha256 FROM models"
            )
        }
        for key, model in self._versions.items():
            if found.get(key) != model:
                raise Violation("a version is published once", f"version {key[1]} was {model}, is {found.get(key)}")
        rounds = [round_id for round_id, _ in found.values() if round_id is not None]
        if len(set(rounds)) != len(rounds):
            raise Violation("a version is published once", "a round published two versions")
        self._versions = found

    def _check_rounds(self) -> None:
        for task, number, state, failure, detail in self.world.seen(
            "SELECT task_hash, number, state, failure_type, failure_detail FROM rounds"
        ):
            before = self._states.get((task, number), "open")
            if state not in _reachable(before):
                raise Violation("rounds only go forward", f"round {number} went from {before} to {state}")
            if state == "failed" and failure not in EXCUSED:
                raise Violation("rounds fail for good reasons only", f"round {number}: {failure}: {detail}")
            self._states[task, number] = state

    # -- at the end ---------------------------------------------------------------------------------

    def begin_healing(self) -> None:
        """Which rounds have no excuse from now on: time enough, and holders that nobody lied to."""
        self._expected = set()
        if self.world.record.lies:
            return
        now = self.world.clock()
        for task, number, state, deadline in self.world.seen(
            "SELECT task_hash, number, state, opening_deadline FROM rounds"
        ):
            if state == "closed" or (state == "opening" and deadline > now + OPENING / 2):
                self._expected.add((task, number))

    def rounds(self, *states: RoundState) -> int:
        """How many rounds are in one of these states and have updates."""
        query = f"SELECT count(*) FROM rounds WHERE updates > 0 AND state IN ({', '.join('?' * len(states))})"
        return int(self.world.seen(query, *states)[0][0])

    def quiet(self) -> bool:
        """Whether nothing is under way: every round that has updates has ended, no device has anything to send."""
        return not self.rounds("open", "closed", "opening") and not self.world.unsent

    async def final(self) -> None:
        """What the whole schedule has come to."""
        if not self.quiet():
            raise Violation("every round ends", "; ".join(self.world.record.trace[-12:]))
        for key in self._expected:
            if self._states[key] != "published":
                raise Violation("a round with time and holders is published", f"round {key[1]} is {self._states[key]}")
        for task in self.world.tasks:
            await self._check_sums(task)
        self._check_secrets()

    async def _check_sums(self, task: Task) -> None:
        seen = self.world.seen
        rounds = seen("SELECT number, state, manifest, id FROM rounds WHERE task_hash = ? ORDER BY version", task.id)
        where = dict(seen("SELECT update_id, round_id FROM updates WHERE task_hash = ?", task.id))
        frames, listed = self.world.record.frames, Counter[str]()
        model = np.zeros(task.parameters, dtype=np.float32)
        published = set()
        async with self.world.device(0) as device:
            for number, state, manifest, round_id in rounds:
                self.world.record.counts[f"rounds {state}"] += 1
                if not manifest:
                    continue
                ids = [entry.update_id.hex() for entry in read_unverified(manifest, Manifest).updates]
                listed.update(ids)
                if set(ids) != {update for update, r in where.items() if r == round_id}:
                    raise Violation("an acknowledged update is in one manifest", f"round {number}")
                if state != "published":
                    continue
                published.add(round_id)
                total = await device.opened_sum(task, number)
                wanted = np.zeros(task.length, dtype=np.int64)
                for update in ids:
                    wanted[frames[update].coordinate] += 1
                got = np.rint(total / SCALE).astype(np.int64)
                if (got != wanted).any():
                    raise Violation(
                        "the published sum is exact", f"round {number}: {_counts(got)} for {_counts(wanted)}"
                    )
                model += (total / SCALE / len(ids)).astype(np.float32)
            pulled = await device.pull_model(task)
        if max(listed.values(), default=0) > 1:
            raise Violation("an update is in one manifest", str(listed.most_common(1)))
        twice = Counter(frames[update].coordinate for update, r in where.items() if r in published)
        if max(twice.values(), default=0) > 1:
            raise Violation("a vector counts once", str(twice.most_common(1)))
        if not np.allclose(pulled.tensors["w"], model, atol=1e-5):
            raise Violation("the model is the sum of its rounds", f"version {pulled.version}")
        if pulled.version != len(published):
            raise Violation("a version is published once", f"{pulled.version} versions of {len(published)} rounds")

    def _check_secrets(self) -> None:
        secrets = [*self.world.cast.private, *self.world.record.secrets]
        for name, data in self.world.server.disk.files().items():
            for secret in contained(secrets, data):
                raise Violation("the server holds no secret", f"{len(secret)} secret bytes are in {name}")


def contained(secrets: Sequence[bytes], data: bytes) -> Iterator[bytes]:
    """Those of many secrets that occur in much data: one look at each pair of its bytes instead of one per secret."""
    begins: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for secret in secrets:
        at = min(len(secret) - len(secret.lstrip(b"\0")), len(secret) - 2)  # zeros are everywhere
        begins[int.from_bytes(secret[at : at + 2], "big")].append((at, secret))
    known = np.zeros(1 << 16, dtype=bool)
    known[list(begins)] = True
    octets = np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
    pairs = octets[:-1] << 8 | octets[1:]
    for where in np.flatnonzero(known[pairs]).tolist():
        for at, secret in begins[int(pairs[where])]:
            if where >= at and data.startswith(secret, where - at):
                yield secret


@cache
def _reachable(state: RoundState) -> set[RoundState]:
    found, new = {state}, {state}
    while new:
        new = {after for before in new for after in TRANSITIONS[before]} - found
        found |= new
    return found


def _counts(vector: np.ndarray) -> dict[int, int]:
    return {int(k): int(vector[k]) for k in np.flatnonzero(vector)}
