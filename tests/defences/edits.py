"""The smallest changes of the source that switch the defences of docs/threat-model.md off, a place at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import utime
from pathlib import Path

from tests.defences.rows import Row

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Edit:
    """At `place` (`path.py: name`) `old` becomes `new`; without `old`, the function returns at once.

    attack: how the row begins, where a place stands in several. at: where the text is, if not at `place`.
    """

    place: str
    old: str = ""
    new: str = ""
    attack: str = ""
    at: str = ""

    def belongs_to(self, row: Row) -> bool:
        return self.place in row.places and row.attack.startswith(self.attack)

    @property
    def path(self) -> str:
        return (self.at or self.place).split(": ")[0]

    def applied(self, source: str) -> str:
        """The file's text with the defence off. Raises ValueError unless name and text are there exactly once."""
        name = (self.at or self.place).split(": ")[1]
        found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Definition) and node.name == name]
        if len(found) != 1:
            raise ValueError(f"{self.place}: {len(found)} definitions of {name}")
        lines = source.splitlines(keepends=True)
        first, last = found[0].lineno - 1, found[0].end_lineno
        before, body, after = "".join(lines[:first]), "".join(lines[first:last]), "".join(lines[last:])
        if not self.old:
            return before + _returning(found[0], lines[first:last]) + after
        if body.count(self.old) != 1:
            raise ValueError(f"{self.place}: {self.old!r} stands there {body.count(self.old)} times")
        return before + body.replace(self.old, self.new) + after


def _returning(node: Definition, lines: list[str]) -> str:
    first = node.body[1] if ast.get_docstring(node) is not None else node.body[0]
    at = first.lineno - node.lineno
    return "".join([*lines[:at], " " * first.col_offset, "return\n", *lines[at:]])


@contextmanager
def switched_off(edit: Edit, root: Path) -> Iterator[None]:
    """In the tree at `root`, for a while. The file's old time comes back with its text: compiled files stay valid."""
    path = root / edit.path
    before, status = path.read_text(), path.stat()
    path.write_text(edit.applied(before))
    try:
        yield
    finally:
        path.write_text(before)
        utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _returns(path: str, *names: str) -> tuple[Edit, ...]:
    return tuple(Edit(f"{path}: {name}") for name in names)


def _never(place: str, condition: str, attack: str = "") -> Edit:
    """What an `if` of the place stops is let through."""
    return Edit(place, f"if {condition}:", "if False:", attack)


_ENVELOPE = "he_protocol/schemes/kahe.py: envelope_info"
_REQUEST = "he_protocol/identity.py: check_request"
_SHARE = "he_server/handlers/openings.py: check_share"
_RESOLVE = "he_protocol/sharing.py: resolve"
_FRAME = "he_server/intake.py: Frame"
_ADMIT = "he_server/store/updates.py: admit"
_UNVERIFIED = "from he_protocol.signing import read_unverified; "
_REVOKED = "check_key(await server.revocations(), party.name, party.public)"

EDITS = (
    # A server that lies to key holders.
    *_returns(
        "keys/checks.py",
        "headers_signed",
        "headers_complete",
        "headers_bound",
        "manifest_signed",
        "manifest_bound",
        "round_not_forked",
        "updates_fresh",
        "buckets_large_enough",
        "buckets_numbered",
        "clients_distinct",
        "updates_distinct",
        "sums_fit",
        "versions_recent",
        "sizes_exact",
        "within_budget",
        "epoch_alive",
        "clients_not_revoked",
        "server_not_revoked",
        "revocations_fresh",
    ),
    _never("keys/checks.py: judge", "len(request.updates) != len(request.manifest.updates)"),
    Edit("keys/checks.py: revoked", "known.covers_credential(update.credential)", "False"),
    Edit("keys/holder.py: _answer", "Manifest).round) != number:", "Manifest).round) < 0:"),
    _never("he_protocol/sharing.py: Sharing", "2 * t <= n"),
    Edit(
        "keys/ledger.py: opened_updates",
        '"update_id", sa.LargeBinary, primary_key=True),\n        sa.Column("round", sa.Integer, nullable=False)',
        '"update_id", sa.LargeBinary, primary_key=True),\n        sa.Column("round", sa.Integer, primary_key=True)',
        at="migrations/ledger/versions/0001_joined_opened_refused.py: upgrade",
    ),
    _never("keys/holder.py: join", "task.config.min_clients < self.floor"),
    *_returns("keys/holder.py", "check_promise"),
    Edit(
        "keys/epochs.py: destroy",
        "await holder.ledger.destroy(task, holder.clock())\n",
        "pass\n",
        attack="an old epoch",
    ),
    Edit("keys/epochs.py: destroy", "await asyncio.to_thread(erase_private, path)", "pass", attack="an old epoch"),
    _never("keys/holder.py: add_checked", "hashlib.sha256(body).digest() != signed"),
    Edit(_ENVELOPE, "epoch_id, client.encode()", "client.encode()"),
    Edit(_ENVELOPE, "client.encode(), ", ""),
    Edit(_ENVELOPE, "update_id, holder.encode()", "holder.encode()"),
    Edit(_ENVELOPE, ", holder.encode()", ""),
    Edit("keys/schemes/ckks.py: release", ', bucket.to_bytes(8, "little"))', ",)"),
    Edit(
        "keys/schemes/ckks.py: release",
        "context = (manifest_hash, ",
        "import os; context = (os.urandom(32), ",
    ),
    Edit("keys/keyring.py: Keyring", "check_ledger(record, ledger)", "pass"),
    _never("keys/ceremony.py: check_commitments", "len({commitment.transcript for commitment in commitments}) != 1"),
    _never("keys/ceremony.py: check_commitments", "agreed.setdefault(entry.part, entry.sha256) != entry.sha256"),
    *_returns("keys/ceremony.py", "check_reveals"),
    _never(
        "keys/keygen.py: run",
        "{(other.key, other.transcript) for other in others} != {(mine.key, mine.transcript)}",
    ),
    Edit("keys/agent.py: step", "except Refusal as refusal:", "except KeyboardInterrupt as refusal:"),
    Edit("keys/agent.py: _open", "except Refusal as refusal:", "except KeyboardInterrupt as refusal:"),
    Edit(
        "keys/ledger.py: refused",
        "same = refusals.c.problem == refusal.problem.slug",
        'same = refusals.c.problem != ""',
    ),
    # A server that lies to clients, or to whoever audits it.
    Edit(
        "he_protocol/task.py: from_token",
        "task = cls(verify(token, TaskConfig, authority)",
        f"{_UNVERIFIED}task = cls(read_unverified(token, TaskConfig)",
    ),
    Edit("he_protocol/schemes/kahe.py: common_key", ", epoch_id)", ")"),
    Edit("he_client/transport.py: task", "max(tasks, key=lambda task: task.config.epoch)", "tasks[0]"),
    Edit("he_client/transport.py: task", "max(tasks, key=lambda task: task.config.epoch)", "tasks[-1]"),
    _never("he_client/schemes/ckks.py: check_confirmations", "len(set(read)) != 1"),
    _never("he_client/schemes/ckks.py: joint_context", "hashlib.sha256(packed).digest() != digest"),
    *_returns("he_protocol/seal.py", "refuse_private"),
    _never("he_client/schemes/ckks.py: load_context", "context.has_secret_key()"),
    Edit(
        "he_client/client.py: send",
        "signed = verify(receipt.receipt, Receipt, task.config.server.key)",
        f"{_UNVERIFIED}signed = read_unverified(receipt.receipt, Receipt)",
    ),
    _never(
        "he_client/client.py: send",
        "(signed.update_id.hex(), signed.header) != (sealed.update_id, token_hash(spool.header(sealed).header))",
    ),
    Edit("he_client/spool.py: Spool", "found.append(self._sealed(folder.name))", "shutil.rmtree(folder)"),
    Edit(_REQUEST, "wanted = (audience,", "wanted = (claims.aud,", attack="a client's request"),
    Edit(_REQUEST, "wanted = (audience, method,", "wanted = (audience, claims.htm,", attack="a client's request"),
    Edit(
        _REQUEST, "wanted = (audience, method, path)", "wanted = (audience, method, claims.htu)", "a client's request"
    ),
    _never("he_client/transport.py: _read_capped", "len(body) > limit"),
    _never("he_server/audit.py: verify_chain", "pinned is not None and not contains"),
    _never("he_server/audit.py: verify_chain", "entry != expected"),
    Edit(
        "he_server/settings.py: read_key",
        "return read_private(path, KeyRecord,",
        "from keys.keyring import HpkeRecord; return read_private(path, HpkeRecord,",
    ),
    # Lying key holders.
    Edit(_RESOLVE, "if not found:", "if True:", "a wrong share"),
    _never("he_protocol/schemes/kahe.py: opened_key", "worst > bound"),
    Edit(_SHARE, "check_binding(task, share.task_hash, share.epoch)", "pass", attack="an old round's share"),
    _never(_SHARE, "share.round != record.number", "an old round's share"),
    _never(_SHARE, "share.manifest.hex() != record.manifest_hash", "an old round's share"),
    _never(_SHARE, "got != [(bucket, part) for bucket in opened for part in known]", "a share without"),
    _never("he_server/store/rounds.py: _same_share", "payload_hash(before) != payload_hash(token)"),
    Edit("he_server/rounds.py: combining_due", "shares >= committee.threshold", "shares > committee.threshold"),
    Edit("he_server/manifests.py: excluded_by_holders", "len(by_holder) >= needed", "by_holder"),
    Edit("he_server/handlers/openings.py: put_share", "< task.committee.agreement", "< 0"),
    Edit("he_server/aggregate.py: is_intact", "hasher.digest() == sha256", "True"),
    Edit("he_server/manifests.py: plan_round", "and u.update_id in lost", "and False"),
    Edit(
        "he_server/auth.py: check_member",
        "if index is None or task.config.holders[index].key != party.public:",
        "if index is None:",
    ),
    *_returns("he_server/auth.py", "check_self"),
    Edit(
        "he_protocol/sharing.py: parts_of",
        "tuple(i for i, out in enumerate(self.excluded) if holder not in out)",
        "tuple(range(self.parts))",
    ),
    # Lying clients.
    Edit("he_server/opening.py: check_buckets", "if refusal.problem != COMBINE_REFUSED:", "if True:"),
    Edit("keys/holder.py: BucketSums", "except Refusal as refusal:", "except KeyboardInterrupt as refusal:"),
    _never(_RESOLVE, "len(vote) > 1", "different seeds"),
    Edit("he_server/optimiser.py: mean_of", 'if config.combination == "mean":', "if True:"),
    *_returns("he_server/aggregate.py", "check_vector"),
    _never("he_server/intake.py: check_body", "section.layout is not None"),
    _never(_FRAME, "size is not None and size > limit"),
    _never(_FRAME, "size > self._limit"),
    _never(_FRAME, "got > size"),
    *_returns("he_server/intake.py", "_check_digest"),
    Edit(
        "he_server/handlers/updates.py: check_signed_update",
        'return check_signed(signed.header, UpdateHeader, client, "client")',
        f"{_UNVERIFIED}return read_unverified(signed.header, UpdateHeader)",
        attack="a body other",
    ),
    _never("he_server/handlers/updates.py: check_signed_update", "client != party", "sending what"),
    _never(_ADMIT, "header_hash", "an update id"),
    _never(_ADMIT, "offered.client in known.in_round", "two updates"),
    _never("he_server/rounds.py: check_header", "header.created > now + CLOCK_SKEW_SECONDS"),
    *_returns("he_server/rounds.py", "check_lasting"),
    Edit("he_server/pressure.py: paced", "if too_slow(", "if False and too_slow("),
    *_returns("he_server/uploads.py", "check_cap"),
    _never("he_server/store/uploads.py: upload", "row.expires <= now"),
    Edit("he_server/pressure.py: Pressure", "await self._room(size)", "pass"),
    Edit(
        "he_protocol/problems.py: printable",
        'return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)',
        "return text",
    ),
    # The wire, and stolen keys.
    _never("he_server/replay.py: ReplayCache", "name in self._seen"),
    _never(
        _REQUEST,
        "claims.exp - claims.iat > PROOF_SECONDS or not claims.iat - CLOCK_SKEW_SECONDS <= now < claims.exp",
        "a request seen",
    ),
    Edit(
        _REQUEST,
        "verify(proof, RequestProof, party.public)",
        "read_unverified(proof, RequestProof)",
        attack="a stolen credential",
    ),
    Edit("he_client/transport.py: Transport", "ssl=self._tls if self._tls is not None else True", "ssl=False"),
    Edit("he_server/auth.py: authenticate", _REVOKED, "pass"),
    Edit("he_server/handlers/updates.py: _accept", _REVOKED, "pass"),
    *_returns("he_protocol/revocation.py", "check_key"),
    Edit("he_server/manifests.py: check_update", "check_key(now.revocations, update.client, key)", "pass", "a thief's"),
    Edit(
        "he_server/manifests.py: check_update",
        "check_base_version(update.base_version, now.version, task.config.staleness)",
        "pass",
        "an update that becomes",
    ),
    Edit("he_client/client.py: task", "check_key(known, task.config.server.name, task.config.server.key)", "pass"),
    *_returns("he_protocol/revocation.py", "check_newer"),
    Edit(
        "he_protocol/revocation.py: read",
        "verify(token, RevocationList, authority)",
        "read_unverified(token, RevocationList)",
    ),
    Edit("keys/ledger.py: learn_revocations", "if offered.number > (known or 0):", "if True:"),
    Edit(
        "keys/epochs.py: destroy",
        "await asyncio.to_thread(erase_private, path)",
        "path.unlink()",
        "a holder's key files",
    ),
)
