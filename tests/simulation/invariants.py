"""What must hold after every operation, and at the end, whatever happened in between."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache

import numpy as np

from he_protocol import documents, paths
from he_protocol import frames as framing
from he_protocol.documents import RoundState
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import message_kind, payload_hash, read_unverified
from he_protocol.messages import Manifest, Share, Vote
from he_protocol.problems import ABANDONED, BUDGET_EXHAUSTED, COMBINE_REFUSED, TOO_FEW_CLIENTS
from he_protocol.task import Task
from he_server.rules.rounds import TRANSITIONS

from .machine import Machine
from .world import AGREEMENT, MIN_CLIENTS, SCALE, THRESHOLD, World

EXCUSED = frozenset({TOO_FEW_CLIENTS.urn, ABANDONED.urn})
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
        self._writing: dict[object, tuple[str, int, bytearray]] = {}
        self._released: dict[tuple[str, bytes, int, int], bytes] = {}
        self._manifests: dict[bytes, Manifest] = {}
        self._bases: dict[bytes, list[tuple[str, int]]] = {}
        self._voters: dict[bytes, set[str]] = defaultdict(set)
        self._voted: dict[tuple[str, bytes, int], bytes] = {}
        self._holders_of: dict[bytes, set[str]] = defaultdict(set)
        self._versions: dict[tuple[str, int], tuple[int | None, str]] = {}
        self._states: dict[tuple[str, int], RoundState] = {}
        self._expected: set[tuple[str, int]] = set()

    # -- on the wire --------------------------------------------------------------------------------

    def watch(self, machine: Machine, end: object, data: bytes) -> None:
        """A write of an honest key holder that begins or continues a vote, or the release of a share."""
        if not machine.name.startswith("holder") or machine.name == f"holder-{self.world.traitor}":
            return
        line = data.split(b"\r\n", 1)[0]
        if line.startswith((b"PUT ", b"GET ")):
            self._writing.pop(end, None)
        if line.startswith(b"PUT ") and (b"/shares/" in line or b"/answers/" in line):
            head, data = data.split(b"\r\n\r\n", 1)
            size = next(int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:"))
            kind = "share" if b"/shares/" in line else "answer"
            if kind == "share" and not self._decisions(machine):
                self._violate("decided before released", f"{machine.name} sends a share and has never voted")
            self._writing[end] = kind, size, bytearray()
        if end in self._writing:
            kind, size, sent = self._writing[end]
            sent += data
            if kind == "share":
                self._share(machine, end, bytes(sent))
            elif len(sent) >= size:
                del self._writing[end]
                self._answer(machine, sent.decode())

    def _answer(self, machine: Machine, token: str) -> None:
        if message_kind(token) != "vote":
            return
        vote = read_unverified(token, Vote)
        decided = self._decisions(machine).get((vote.task_hash, vote.opening))
        if decided is None or payload_hash(decided) != vote.manifest:
            self._violate("decided before voted", f"{machine.name}: the ledger has no such vote")
            return
        self._count(machine, vote.opening, decided, votes=True)

    def _share(self, machine: Machine, end: object, sent: bytes) -> None:
        if len(sent) < framing.PREFIX_BYTES or len(sent) < framing.PREFIX_BYTES + framing.head_size(
            sent[: framing.PREFIX_BYTES]
        ):
            return None
        del self._writing[end]
        share = read_unverified(framing.split(sent)[0].decode(), Share)
        found = {payload_hash(token): token for token in self._decisions(machine).values()}
        if share.manifest not in found:
            return self._violate("decided before released", f"{machine.name}: the ledger has another manifest")
        for part in share.vectors:
            key = machine.name, share.manifest, part.bucket, part.subshare
            if self._released.setdefault(key, part.sha256) != part.sha256:
                self._violate("one share per manifest", f"{machine.name} released two for round {share.round}")
        manifest = read_unverified(found[share.manifest], Manifest)
        if len(self._voters[share.manifest]) < self._honest(AGREEMENT):
            voters = sorted(self._voters[share.manifest])
            self._violate("certified before released", f"{machine.name}, opening {manifest.opening}: votes of {voters}")
        self._count(machine, manifest.opening, found[share.manifest])  # it may not have voted before
        if share.vectors:
            self._holders_of[share.manifest].add(machine.name)
            self._check_openings()
        return None

    def _count(self, machine: Machine, opening: int, token: str, *, votes: bool = False) -> None:
        """What a holder stands by: with a vote, or with a share.

        It votes for no base version a second time; for a certificate of others it may release once more: that no two
        certificates share one is what protects the client.
        """
        digest, manifest = payload_hash(token), read_unverified(token, Manifest)
        if self._voted.setdefault((machine.name, manifest.task_hash, opening), digest) != digest:
            self._violate("one manifest for a number", f"{machine.name} votes for two manifests of {opening}")
        most = next(t.config.rounds.max_openings for t in self.world.cast.tasks if t.hash == manifest.task_hash)
        if opening > most:
            self._violate("openings are within the plan", f"{machine.name} votes for number {opening} of {most}")
        if min(Counter(entry.bucket for entry in manifest.updates).values(), default=0) < MIN_CLIENTS:
            self._violate("sums are large enough", f"{machine.name} votes for {len(manifest.updates)} updates")
        frames = [self.world.record.frames[entry.update_id.hex()] for entry in manifest.updates]
        self._manifests[digest] = manifest
        self._bases[digest] = [(frame.client_name, frame.base) for frame in frames]
        before = {m for m, voters in self._voters.items() if machine.name in voters}
        if votes and digest not in before:
            known = {(self._manifests[m].task_hash, base) for m in before for base in self._bases[m]}
            if again := known & {(manifest.task_hash, base) for base in self._bases[digest]}:
                self._violate(
                    "no base version twice", f"{sorted(base for _, base in again)} in votes of {machine.name}"
                )
        self._voters[digest].add(machine.name)
        certified = {m for m, voters in self._voters.items() if len(voters) >= self._honest(AGREEMENT)}
        self._check_disjoint(f"votes of {machine.name}", before | {digest})
        self._check_disjoint("certificates", certified)
        bases = Counter((self._manifests[m].task_hash, base) for m in certified for base in set(self._bases[m]))
        if max(bases.values(), default=0) > 1:
            self._violate("no base version twice", f"{bases.most_common(1)} in certificates")

    def _check_disjoint(self, what: str, manifests: set[bytes]) -> None:
        numbers = Counter((self._manifests[m].task_hash, self._manifests[m].opening) for m in manifests)
        ids = Counter(entry.update_id.hex() for m in manifests for entry in self._manifests[m].updates)
        for name, counts in (("one manifest for a number", numbers), ("no update in two openings", ids)):
            if counts and max(counts.values()) > 1:
                self._violate(name, f"{counts.most_common(1)} in {what}")

    def _check_openings(self) -> None:
        """The traitor has released everything that it was ever shown, to everybody."""
        opened = [self._manifests[m] for m, by in self._holders_of.items() if len(by) >= self._honest(THRESHOLD)]
        for task in self.world.cast.tasks:
            mine = [manifest.opening for manifest in opened if manifest.task_hash == task.hash]
            if len(mine) > task.config.rounds.max_openings:
                self._violate("openings are within the plan", f"{sorted(mine)} of {task.config.rounds.max_openings}")

    def _honest(self, needed: int) -> int:
        """So many honest holders are as good as `needed` ones for who has the traitor's word."""
        return needed - (self.world.traitor is not None)

    def _decisions(self, machine: Machine) -> dict[tuple[bytes, int], str]:
        """The manifests that a holder's ledger durably has votes for, by task and opening number."""
        with closing(sqlite3.connect(f"file:{machine.disk.root}/ledger.db?mode=ro", uri=True)) as ledger:
            rows = ledger.execute("SELECT task_hash, opening, manifest FROM votes").fetchall()
        return {(task, opening): manifest for task, opening, manifest in rows}

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
            if state == "failed" and before != "failed" and not self._may_fail(task, number, failure):
                raise Violation("rounds fail for good reasons only", f"round {number}: {failure}: {detail}")
            self._states[task, number] = state

    def _may_fail(self, task: str, number: int, failure: str) -> bool:
        if failure == COMBINE_REFUSED.urn:
            return bool(self._closed(task, number))
        sound, _ = self._sound(task, number)
        if failure == TOO_FEW_CLIENTS.urn and not (self._excused or self.world.lean):
            return len(sound) < MIN_CLIENTS
        if failure == BUDGET_EXHAUSTED.urn:
            return self.openings_left(task) == 0
        return failure in EXCUSED

    def openings_left(self, task: str) -> int:
        """So many numbers has the server not used yet."""
        most = next(t.config.rounds.max_openings for t in self.world.cast.tasks if t.id == task)
        used = "SELECT max(opening) FROM rounds WHERE task_hash = ? AND state != 'closed'"
        known = "SELECT opened FROM tasks WHERE task_hash = ?"
        return most - max(self.world.seen(query, task)[0][0] or 0 for query in (used, known))

    def _sound(self, task: str, number: int) -> tuple[list[str], list[str]]:
        """The updates of a round that nobody has a reason to leave out, and the others."""
        record, found = self.world.record, (list[str](), list[str]())
        newest = self._newest(task)
        rows = self.world.seen(
            "SELECT update_id FROM updates JOIN rounds ON rounds.id = round_id"
            " WHERE updates.task_hash = ? AND rounds.number = ?", task, number
        )  # fmt: skip
        for (update,) in rows:
            frame = record.frames[update]
            stale = frame.base < newest - frame.task.config.rounds.staleness
            found[update in record.spoilt or record.revokes(update) or stale].append(update)
        return found

    def _closed(self, task: str, number: int) -> set[str]:
        """The updates of a round because of which their buckets may stay closed: of revoked clients; and those that
        leave too few honest holders who can open the whole bucket: one, or two where nobody waits any longer for one
        that is away."""
        world, spoilt, found = self.world, self.world.record.spoilt, set[str]()
        rows = world.seen(
            "SELECT update_id, bucket, opening_deadline, excluded FROM updates JOIN rounds ON rounds.id = round_id"
            " WHERE updates.task_hash = ? AND rounds.number = ?", task, number
        )  # fmt: skip
        out = {one["update"] for *_, excluded in rows for one in json.loads(excluded)}
        late = any(world.clock() >= deadline for _, _, deadline, _ in rows)
        buckets = defaultdict[int, list[str]](list)
        for update, bucket, *_ in rows:
            if update not in out:
                buckets[bucket].append(update)
        for there in buckets.values():
            able = set(world.honest).difference(*(spoilt.get(update, ()) for update in there))
            closed = len(able) < THRESHOLD + late
            found |= {update for update in there if world.record.revokes(update) or (closed and update in spoilt)}
        return found

    def _newest(self, task: str) -> int:
        return max((version for known, version in self._versions if known == task), default=0)

    @property
    def _excused(self) -> bool:
        """Key holders may have voted for what the server knows nothing of."""
        return bool(self.world.record.lies or self.world.record.restored)

    def forget(self) -> None:
        """The server's disk has become an older one."""
        self._versions, self._states = {}, {}

    # -- at the end ---------------------------------------------------------------------------------

    def begin_healing(self) -> None:
        """Which rounds have no excuse from now on: nobody lied to their holders."""
        self._expected = set()
        if not self._excused:
            rows = self.world.seen("SELECT task_hash, number FROM rounds WHERE state IN ('closed', 'opening')")
            self._expected = set(rows)

    def rounds(self, *states: RoundState) -> int:
        """How many rounds are in one of these states and have updates."""
        query = f"SELECT count(*) FROM rounds WHERE updates > 0 AND state IN ({', '.join('?' * len(states))})"
        return int(self.world.seen(query, *states)[0][0])

    def stuck(self) -> list[tuple[Task, int]]:
        """Rounds that holders may never open: they have voted for what the server does not know. Oldest first."""
        query = "SELECT number FROM rounds WHERE task_hash = ? AND state IN ('closed', 'opening') AND manifest != ''"
        rows = [(task, self.world.seen(f"{query} ORDER BY number", task.id)) for task in self.world.tasks]
        return [(task, number) for task, found in rows for (number,) in found if self._excused]

    def progress(self) -> object:
        """What changes whenever rounds go on."""
        query = "SELECT count(*), sum(state = 'open'), sum(state = 'closed'), sum(manifest != ''), sum(updates)"
        counts = self.world.seen(f"{query} FROM rounds")[0]
        said = self.world.seen("SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM shares)")[0]
        return counts, said, self.rounds("opening"), frozenset(self.world.unsent)

    def quiet(self) -> bool:
        """Whether nothing is under way: every round that has updates has ended, no device has anything to send."""
        return not self.rounds("open", "closed", "opening") and not self.world.unsent

    async def final(self) -> None:
        """What the whole schedule has come to."""
        if not self.quiet():
            raise Violation("every round ends", "; ".join(self.world.record.trace[-12:]))
        query = "SELECT failure_type FROM rounds WHERE task_hash = ? AND number = ?"
        for task_id, number in self._expected:
            if self.world.seen(query, task_id, number)[0][0] == ABANDONED.urn:
                raise Violation("a round with holders is published", f"round {number} was abandoned")
        for task in self.world.tasks:
            try:
                await self._check_sums(task)
                await self._check_excluded(task)
            except ProblemError as refusal:
                raise Violation("what is published can be read", str(refusal)) from refusal
        self._check_secrets()

    async def _check_sums(self, task: Task) -> None:
        seen, record = self.world.seen, self.world.record
        query = "SELECT number, state, manifest, id, excluded, dropped FROM rounds WHERE task_hash = ? ORDER BY version"
        where = dict(seen("SELECT update_id, round_id FROM updates WHERE task_hash = ?", task.id))
        frames, listed = record.frames, Counter[str]()
        model = np.zeros(task.parameters, dtype=np.float32)
        counted = Counter[int]()
        published = 0
        witness = next(client for client in range(len(self.world.devices)) if client not in record.revoked)
        async with self.world.device(witness) as device:
            for number, state, manifest, round_id, excluded, dropped in seen(query, task.id):
                record.counts[f"rounds {state}"] += 1
                if not manifest:
                    continue
                entries = read_unverified(manifest, Manifest).updates
                out = [one["update"] for one in json.loads(excluded)]
                ids = [entry.update_id.hex() for entry in entries]
                listed.update(ids + out)
                if set(ids + out) != {update for update, r in where.items() if r == round_id}:
                    raise Violation("an acknowledged update is in one manifest, or left out of it", f"round {number}")
                if state != "published":
                    continue
                published += 1
                lost = {update for bucket in json.loads(dropped) for update in bucket["updates"]}
                self._check_dropped(task, number, lost)
                kept = [update for update in ids if update not in lost]
                counted.update(frames[update].coordinate for update in kept)
                total = await device.opened_sum(task, number)
                wanted = np.zeros(task.length, dtype=np.int64)
                for update in kept:
                    wanted[frames[update].coordinate] += 1
                got = np.rint(total / SCALE).astype(np.int64)
                if (got != wanted).any():
                    raise Violation(
                        "the published sum is exact", f"round {number}: {_counts(got)} for {_counts(wanted)}"
                    )
                model += (total / SCALE / len(kept)).astype(np.float32)
            pulled = await device.pull_model(task)
        if max(listed.values(), default=0) > 1:
            raise Violation("an update is in one manifest", str(listed.most_common(1)))
        if max(counted.values(), default=0) > 1:
            raise Violation("a vector counts once", str(counted.most_common(1)))
        if not np.allclose(pulled.tensors["w"], model, atol=1e-5):
            raise Violation("the model is the sum of its rounds", f"version {pulled.version}")
        query = "SELECT count(*) FROM rounds WHERE task_hash = ? AND state = 'failed' AND opening_deadline > 0"
        repeated = seen(query, task.id)[0][0]
        if pulled.version != published + repeated and not record.restored and not record.lies:
            raise Violation("a version is published once", f"{pulled.version} versions of {published} rounds")

    def _check_dropped(self, task: Task, number: int, lost: set[str]) -> None:
        if lost and not lost & self._closed(task.id, number):
            raise Violation("buckets of honest updates open", f"round {number}")

    async def _check_excluded(self, task: Task) -> None:
        """Whatever was left out was so for a reason, and its client is told."""
        query = "SELECT number, excluded FROM rounds WHERE task_hash = ? AND excluded != '[]'"
        for number, excluded in self.world.seen(query, task.id):
            sound, _ = self._sound(task.id, number)
            for one in json.loads(excluded):
                self.world.record.counts["updates left out"] += 1
                update = one["update"]
                if update in sound and not (self._excused or self.world.lean):
                    raise Violation("honest updates are not left out", f"{update}: {one['failure']}")
                frame = self.world.record.frames[update]
                if frame.client in self.world.record.revoked:
                    continue  # the server does not talk to it any more
                async with self.world.device(frame.client) as device:
                    path, server = paths.update_path(task.id, update), task.config.server.name
                    status = await device._transport.document("GET", path, documents.UpdateStatus, audience=server)
                if status.failure is None:
                    raise Violation("who is left out is told why", update)

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
