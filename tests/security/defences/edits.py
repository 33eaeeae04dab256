"""The smallest changes of the source that switch the defences of docs/threat-model.md off, a place at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import utime
from pathlib import Path

from tests.security.defences.rows import Row

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
_REQUEST = "he_protocol/identity/requests.py: check_request"
_SHARE = "he_server/rules/shares.py: check_share"
_INVITED = "he_protocol/identity/invitations.py: check_invitation"
_CHOICES = "he_protocol/sharing.py: choices"
_SETTLE = "he_server/rules/choosing.py: settle"
_MEAN = "he_protocol/aggregation/combination.py: MeanOfAll"
_MIDDLE = "he_protocol/aggregation/combination.py: MiddleOfBuckets"
_FRAME = "he_server/services/frames.py: Frame"
_TRANSPORT = "he_party/http_transport.py: HttpTransport"
_CHOOSE = "he_party/tasks.py: choose"
_NEWEST = "he_party/tasks.py: newest"
_ADMIT = "he_server/store/updates.py: admit"
_PUBLISHED = "he_client/published.py: check_published"
_UNVERIFIED = "from he_protocol.identity.jws import read_unverified; "
_REVOKED = "check_key(await server.revocations.current(), party.name, party.public)"

_JUDGED = (
    "await holder.ledger.informed(request); from he_holder.rules import check_all;"
    " await asyncio.to_thread(check_all, request, RELEASING)"
)
_UNRECORDED = (
    "await self._holder.ledger.informed(request); from he_holder.rules import check_all;"
    " await asyncio.to_thread(check_all, request, VOTING)"
)
_BINDING = "await self._holder.ledger.decide(request, ())"

_POINT = "he_protocol/identity/jws.py: _check_point"

EDITS = (
    # A server that lies to key holders.
    *_returns(
        "keys/he_holder/rules.py",
        "headers_signed",
        "headers_complete",
        "headers_bound",
        "manifest_signed",
        "manifest_bound",
        "number_in_plan",
        "number_unused",
        "time_moves_on",
        "model_moves_on",
        "bases_fresh",
        "certified",
        "updates_fresh",
        "buckets_large_enough",
        "buckets_numbered",
        "clients_distinct",
        "updates_distinct",
        "sums_fit",
        "versions_recent",
        "sizes_exact",
        "epoch_alive",
        "clients_not_revoked",
        "server_not_revoked",
        "revocations_fresh",
    ),
    _never("keys/he_holder/rules.py: check_all", "len(request.updates) != len(request.manifest.updates)"),
    Edit(
        "keys/he_holder/rules.py: revoked_buckets", "except ProblemError:", "except ProblemError:\n            continue"
    ),
    _never("keys/he_holder/opening.py: _request", "manifest.round != number"),
    Edit("he_protocol/committee.py: colluders", "2 * self.agreement - self.holders - 1", "self.agreement"),
    *_returns("he_protocol/committee.py", "check_collusion"),
    Edit("keys/he_holder/opening.py: _vote", "await self._holder.ledger.decide(request, VOTING)", _UNRECORDED),
    Edit("keys/he_holder/opening.py: _release", "await holder.ledger.decide(request, RELEASING)", _JUDGED),
    Edit("keys/he_holder/opening.py: _screen", "await self._holder.ledger.informed(request)", _BINDING),
    Edit(
        "keys/he_holder/release.py: covers",
        "self._listed.get(entry.update_id) == entry",
        "entry.update_id in self._listed",
    ),
    Edit("keys/he_holder/release.py: covers", "self._added[bucket] == ids", "self._added[bucket] >= ids"),
    Edit(
        "keys/he_holder/ledger_schema.py: voted_updates",
        '"update_id", sa.LargeBinary, primary_key=True),\n        sa.Column("opening", sa.Integer, nullable=False)',
        '"update_id", sa.LargeBinary, primary_key=True),\n        sa.Column("opening", sa.Integer, primary_key=True)',
        at="migrations/he_migrations/ledger/versions/0001_votes.py: upgrade",
    ),
    _never(
        "keys/he_holder/holder.py: join", "task.config.rounds.min_clients < self.min_clients_floor", "a manifest of one"
    ),
    _never("keys/he_holder/holder.py: join", "task.committee.colluders < self.least_f", "a committee"),
    *_returns("keys/he_holder/holder.py", "check_promise"),
    Edit(
        "keys/he_holder/epochs.py: destroy",
        "await holder.ledger.destroy(task, holder.clock())\n",
        "pass\n",
        attack="an old epoch",
    ),
    Edit(
        "keys/he_holder/epochs.py: destroy",
        "await asyncio.to_thread(erase_private, path)",
        "pass",
        attack="an old epoch",
    ),
    _never("keys/he_holder/release.py: check_section", "hashlib.sha256(body).digest() != signed"),
    Edit(_ENVELOPE, "epoch_id, client.encode()", "client.encode()"),
    Edit(_ENVELOPE, "client.encode(), ", ""),
    Edit(_ENVELOPE, "update_id, holder.encode()", "holder.encode()"),
    Edit(_ENVELOPE, ", holder.encode()", ""),
    Edit("keys/he_holder/schemes/ckks.py: release", ', bucket.to_bytes(8, "little"))', ",)"),
    Edit(
        "keys/he_holder/schemes/ckks.py: release",
        "context = (manifest_hash, ",
        "import os; context = (os.urandom(32), ",
    ),
    Edit("keys/he_holder/keyring.py: Keyring", "check_ledger(record, ledger)", "pass"),
    _never(
        "keys/he_holder/ceremony/messages.py: check_commitments",
        "len({commitment.transcript for commitment in commitments}) != 1",
    ),
    _never(
        "keys/he_holder/ceremony/messages.py: check_commitments",
        "agreed.setdefault(entry.subshare, entry.sha256) != entry.sha256",
    ),
    *_returns("keys/he_holder/ceremony/messages.py", "check_reveals"),
    _never(
        "keys/he_holder/ceremony/run.py: run",
        "{(other.key, other.transcript) for other in others} != {(mine.key, mine.transcript)}",
    ),
    Edit("keys/he_holder/agent.py: step", "except ProblemError as refusal:", "except KeyboardInterrupt as refusal:"),
    Edit("keys/he_holder/agent.py: _serve", "except ProblemError as refusal:", "except KeyboardInterrupt as refusal:"),
    Edit(
        "keys/he_holder/ledger.py: refused",
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
    *(
        Edit(
            _NEWEST,
            "epoch = max(task.config.epoch for task in self.tasks)",
            f"epoch = self.tasks[{at}].config.epoch",
            "an old epoch b",
        )
        for at in (0, -1)
    ),
    Edit("he_party/tasks.py: job", "if task.config.name == name)", ")", "another signed task"),
    Edit(_CHOOSE, "if task.id == wanted]", "]", "another signed task"),
    _never(_NEWEST, "before is not None and epoch < before.epoch", "an old epoch alone"),
    _never(
        _NEWEST,
        "len(hashes) > 1 or (before is not None and epoch == before.epoch)",
        "an old epoch alone",
    ),
    Edit("he_party/tasks.py: TaskMemory", "write_durably(self._path,", "(lambda *_: None)(self._path,"),
    _never(_CHOOSE, "looks_like_hash(wanted)", "a name that looks"),
    _never("he_protocol/config.py: check_name", "looks_like_hash(name)"),
    Edit("he_party/tasks.py: read", "except ProblemError as refusal:", "except KeyboardInterrupt as refusal:"),
    *_returns("he_protocol/schemes/registry.py", "check_secure"),
    *_returns("he_client/floors.py", "check_floors"),
    Edit("he_client/client.py: encrypt", "await asyncio.to_thread(check_floors, task, self._floors)", "pass"),
    _never(_PUBLISHED, "said.version == 0 and sha256 != initial", "another initial model"),
    _never(
        "he_server/blobs/tensor_file.py: keep_model", "sha256 != (expected := task.config.model.initial_model.hex())"
    ),
    *_returns("he_protocol/envelope.py", "check_key"),
    Edit("he_protocol/identity/jws.py: check_public", "if y in _LOW_ORDER_Y:", "if False:", at=_POINT),
    Edit("he_protocol/identity/jws.py: check_public", "y >= CURVE_PRIME or ", "", at=_POINT),
    _never("he_client/schemes/ckks.py: check_confirmations", "len(set(read)) != 1"),
    _never("he_client/schemes/ckks.py: joint_context", "hashlib.sha256(packed).digest() != digest"),
    *_returns("he_protocol/schemes/seal_codec.py", "refuse_private"),
    _never("he_client/schemes/ckks.py: load_context", "context.has_secret_key()"),
    Edit(
        "he_client/client.py: _upload",
        "signed = verify(receipt.receipt, Receipt, task.config.server.key)",
        f"{_UNVERIFIED}signed = read_unverified(receipt.receipt, Receipt)",
        "a receipt",
    ),
    _never(
        "he_client/client.py: _upload",
        "(signed.update_id.hex(), signed.header) != (encrypted.update_id, token_hash(spool.header(encrypted).header))",
        "a receipt",
    ),
    Edit("he_client/training/gradients.py: _add", "torch.where(factor[:, None] > 0, piece, 0.0)", "piece"),
    Edit("he_client/training/rows.py: add", "torch.where(chosen > 0, gradient * chosen, 0.0)", "gradient * chosen"),
    Edit("he_client/training/gradients.py: _factors", "norms <= LARGEST", "norms <= 1e300"),
    Edit("he_client/training/rows.py: _margin", "return roundings *", "return 0 * roundings *"),
    *_returns("he_client/training/ghost.py", "_refuse_beside"),
    Edit("he_client/training/gradients.py: _add_one", "if self._raise_errors:", "if True:"),
    *_returns("he_client/training/layers.py", "refuse_mixing"),
    Edit("he_client/training/gradients.py: _buffers", "value.detach().clone()", "value.detach()"),
    Edit(
        "he_client/quantise.py: _total",
        "    if not isfinite(length):",
        "    _checked(task, update, examples)\n    if False:",
    ),
    _never(
        "he_client/attempt.py: attempt",
        "total and not (isinstance(result.tensors, Mapping) and result.tensors)",
    ),
    Edit(
        "he_client/client.py: _upload",
        "await asyncio.to_thread(self._spending.count, task, encrypted.update_id)",
        "pass",
    ),
    *_returns("he_client/spending.py", "count", "_check"),
    *_returns("he_protocol/privacy/plan.py", "check_noise"),
    Edit(
        "he_client/spool.py: Spool",
        "found.append((note.time if note else 0.0, folder.stat().st_mtime, encrypted))",
        "shutil.rmtree(folder)",
    ),
    Edit(_REQUEST, "wanted = (audience,", "wanted = (claims.aud,", attack="a client's request"),
    Edit(_REQUEST, "wanted = (audience, method,", "wanted = (audience, claims.htm,", attack="a client's request"),
    Edit(
        _REQUEST, "wanted = (audience, method, path)", "wanted = (audience, method, claims.htu)", "a client's request"
    ),
    _never("he_party/http_transport.py: _blocks", "max(read, declared) > limit"),
    Edit("he_party/http_transport.py: download", "_remove(file)", "pass"),
    _never(
        "he_party/http_transport.py: check_answer",
        "status not in ACCEPTED and not (status == 304 and conditional)",
        "an answer",
    ),
    Edit("he_party/http_transport.py: _response", "allow_redirects=False", "allow_redirects=True"),
    _never(
        "he_party/http_transport.py: check_answer",
        '(coding := headers.get("Content-Encoding", "identity").lower()) != "identity"',
        "a compressed",
    ),
    Edit(_TRANSPORT, "auto_decompress=False", "auto_decompress=True", "a compressed"),
    Edit(
        _TRANSPORT,
        "aiohttp.DummyCookieJar()",
        "aiohttp.CookieJar(unsafe=True)",
        "cookies",
    ),
    Edit(_TRANSPORT, "max_headers=MAX_HEADERS", "max_headers=1 << 20", "headers"),
    Edit(
        _TRANSPORT,
        "max_field_size=MAX_HEADER_BYTES",
        "max_field_size=1 << 20",
        "headers",
    ),
    _never("he_server/rules/audit_chain.py: verify_chain", "pinned is not None and not contains"),
    _never("he_server/rules/audit_chain.py: verify_chain", "entry != expected"),
    Edit(
        "he_server/settings.py: read_key",
        "return read_private(self.key_path, KeyRecord,",
        "from he_holder.keyring import HpkeRecord; return read_private(self.key_path, HpkeRecord,",
    ),
    # Lying key holders.
    Edit(_CHOICES, "combinations(sorted(heard), sharing.threshold)", "[tuple(heard)[: sharing.threshold]]", "a wrong"),
    Edit(
        _CHOICES,
        "frozenset(holder for holder, subshares in heard.items() if subshares.items() <= said.items())",
        "answered",
    ),
    Edit("he_protocol/sharing.py: certain", "2 * sharing.threshold - 1", "sharing.threshold"),
    Edit(_SETTLE, "len(settled) == 1 and (binding or last)", "True", "shares that open to several"),
    Edit(_SETTLE, "(binding or last)", "True", "a vector of its choice"),
    *_returns("he_protocol/schemes/kahe.py", "check_padding"),
    *_returns("he_server/rules/aggregation.py", "check_range"),
    Edit(
        "he_server/jobs/opening.py: check_buckets",
        "if not (last or outcome.final):",
        "if False:",
        "a wrong share among",
    ),
    _never(
        "he_protocol/sum_bounds.py: check_capacity",
        "(bits := self.scheme.garbage_bits(needed, self.length, self.max_clients)) < GARBAGE_BITS",
    ),
    _never("he_protocol/schemes/kahe.py: combined_key", "worst > bound"),
    Edit(_SHARE, "check_binding(task, share.task_hash, share.epoch)", "pass", attack="an old round's share"),
    _never(_SHARE, "share.round != record.number", "an old round's share"),
    _never(_SHARE, "share.manifest.hex() != record.manifest_hash", "an old round's share"),
    _never(_SHARE, "got != [(bucket, subshare) for bucket in opened for subshare in known]", "a share without"),
    _never("he_server/store/shares.py: _same_share", "payload_hash(before) != payload_hash(token)"),
    Edit("he_server/rules/rounds.py: combining_due", "shares >= committee.threshold", "shares > committee.threshold"),
    Edit("he_server/rules/manifests.py: excluded_by_holders", "len(by_holder) >= needed", "by_holder"),
    Edit("he_server/services/shares.py: accept_share", "< task.committee.agreement", "< 0"),
    Edit("he_server/blobs/vectors.py: is_intact", "hasher.digest() == sha256", "True"),
    Edit("he_server/rules/manifests.py: plan_round", "and u.update_id in lost", "and False"),
    Edit(
        "he_server/rules/committee.py: check_member",
        "if index is None or task.config.committee.holders[index].key != party.public:",
        "if index is None:",
    ),
    *_returns("he_server/rules/committee.py", "check_self"),
    Edit(
        "he_protocol/sharing.py: subshares_of",
        "tuple(i for i, out in enumerate(self.excluded) if holder not in out)",
        "tuple(range(self.subshares))",
    ),
    *_returns("he_protocol/envelope.py", "check_distinct"),
    Edit(
        "he_protocol/envelope.py: share_a_half",
        "one[:MLKEM_PUBLIC_BYTES] == other[:MLKEM_PUBLIC_BYTES]",
        "one == other",
    ),
    *_returns("he_protocol/envelope.py", "check_possession"),
    *_returns("he_party/names.py", "check_display"),
    Edit("he_protocol/aggregation/metrics.py: norm", "self.reach * sqrt(self._moved)", "0.0"),
    Edit("he_protocol/privacy/plan.py: spent_together", "delta -= openings * ROUNDING_DELTA", "pass", "a delta below"),
    # Enrolling for somebody else.
    _never(_INVITED, "len(known) != ID_BYTES or not hmac.compare_digest(mac, request.invited)", "another key, or"),
    _never(_INVITED, "known[0] & ~NAMED != ROLES.index(request.role)", "an invitation used"),
    Edit("he_protocol/identity/invitations.py: _key", " + name.encode()", ""),
    Edit(_INVITED, ") <= now:", ") <= 0:", "an invitation used"),
    _never(_INVITED, "used.get(known, request.key) != request.key", "an invitation used"),
    _never("keys/he_authority/register.py: enroll", "invited or asked.invitation"),
    *_returns("keys/he_authority/register.py", "check_name"),
    # Lying clients.
    Edit(_SETTLE, "if refusal.problem != COMBINE_REFUSED:", "if True:", "wrong key shares"),
    Edit(_SETTLE, "final |= certain", "final |= False", "wrong key shares, while"),
    Edit(
        "keys/he_holder/release.py: BucketSums",
        "except ProblemError as refusal:",
        "except KeyboardInterrupt as refusal:",
    ),
    Edit(
        _CHOICES, "combinations(sorted(heard), sharing.threshold)", "[tuple(heard)[: sharing.threshold]]", "different"
    ),
    Edit(_MIDDLE, "trim = self.left_out(len(means))", "trim = 0", "a huge update, in range"),
    Edit(
        _MEAN,
        "np.clip(dequantise(reduce(np.add, sums), scale) / sum(weights), -largest, largest)",
        "dequantise(reduce(np.add, sums), scale) / sum(weights)",
        "moving the mean",
    ),
    Edit(_MIDDLE, "np.clip(means, -largest, largest, out=means)", "pass", "moving the mean"),
    _never("he_protocol/aggregation/weighting.py: check_summed", "not max(least, 0.0) < final <= most"),
    *_returns("he_protocol/aggregation/weighting.py", "check_cap"),
    *_returns("he_server/blobs/vectors.py", "check_vector"),
    _never("he_server/services/receive.py: check_body", "section.layout is not None"),
    _never(_FRAME, "size is not None and size > limit"),
    _never(_FRAME, "size > self._limit"),
    _never(_FRAME, "got > size"),
    *_returns("he_server/services/receive.py", "_check_digest"),
    Edit(
        "he_server/services/submit.py: check_signed_update",
        'return check_signed(signed.header, UpdateHeader, client, "client")',
        f"{_UNVERIFIED}return read_unverified(signed.header, UpdateHeader)",
        attack="a body other",
    ),
    _never("he_server/services/submit.py: check_signed_update", "client != party", "sending what"),
    _never(_ADMIT, "header_hash", "an update id"),
    _never(_ADMIT, "offered.client in known.in_round", "two updates"),
    _never("he_server/rules/updates.py: check_header", "header.created > now + CLOCK_SKEW_SECONDS"),
    *_returns("he_server/rules/updates.py", "check_lasting"),
    Edit("he_server/http/pacing.py: minimum_rate", "if too_slow(", "if False and too_slow("),
    *_returns("he_server/rules/uploads.py", "check_cap"),
    _never("he_server/store/uploads.py: get", "row.expires <= now"),
    Edit("he_server/services/backpressure.py: AdmissionController", "await self._wait_until_admitted(size)", "pass"),
    Edit(
        "he_protocol/errors.py: printable",
        'return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)',
        "return text",
    ),
    # Strangers.
    Edit(
        "he_server/http/app.py: _guarded",
        "        await authenticate(server, request, route.access)\n"
        "        sender = await route.sender(server, request)\n"
        "        most = min(sender.most, server.settings.max_update_bytes)\n"
        "        async with server.admission.admit(check_declared(request.content_length, most), sender.party):\n",
        '        async with server.admission.admit(request.content_length or 0, b""):\n'
        "            await authenticate(server, request, route.access)\n",
    ),
    Edit("he_server/services/strangers.py: has_slot", "and of_address < SLOTS_OF_ADDRESS ", ""),
    Edit("he_server/services/strangers.py: has_slot", " and size <= BODY_BYTES", ""),
    Edit("he_server/services/strangers.py: has_slot", "bodies < SLOTS and ", ""),
    Edit("he_server/services/strangers.py: in_time", "asyncio.timeout(PROOF_SECONDS)", "asyncio.timeout(None)"),
    _never("he_server/rules/bodies.py: check_declared", "declared is not None and declared > most"),
    *_returns("he_server/services/initial.py", "check_model"),
    Edit("he_server/services/initial.py: _finish", "check_finite(writer.reread(len(model_file(task).header)))", "pass"),
    Edit("he_server/services/receive.py: keep_or_delete", "await delete_blobs(server, blobs)", "pass", "a new task"),
    Edit("he_server/jobs/garbage.py: orphans", "in TASK_FOLDERS", "in ()"),
    *_returns("he_server/rules/bodies.py", "check_codings"),
    *_returns("he_server/http/params.py", "check_empty"),
    Edit("he_server/http/middleware.py: _read_no_more", "request.transport.pause_reading()", "pass"),
    Edit("he_server/services/connections.py: _shut_out", "if idle is None:", "if True:"),
    _never(
        "he_server/services/connections.py: enter",
        "len(self._all) >= self._limits.in_all and not self._shut_out(self._strangers)",
    ),
    _never(
        "he_server/services/connections.py: enter", "len(same) >= self._limits.address and not self._shut_out(same)"
    ),
    Edit("he_server/services/connections.py: received", "while self._held > HELD_BYTES:", "while False:"),
    _never("he_server/services/connections.py: received", "connection.held > ONE_HOLDS"),
    *_returns("he_server/services/strangers.py", "take"),
    *_returns("he_server/services/connections.py", "doubt"),
    Edit(
        "he_server/services/revocations.py: accept",
        "if token and token == ",
        "if not token and token == ",
    ),
    Edit(
        "he_server/services/revocations.py: accept",
        "check_newer(await self.current(), offered)",
        "pass",
    ),
    Edit("he_server/services/cached.py: Cached", "if not self._found or ", "if True or "),
    Edit("he_server/http/logging.py: emit", "error is None or isinstance(error, HttpProcessingError)", "error is None"),
    Edit("he_server/http/process.py: make_runner", "auto_decompress=False", "auto_decompress=True"),
    Edit(
        "he_server/services/backpressure.py: _turn_of",
        "asyncio.Semaphore(self._limits.max_uploads_of_party)",
        "asyncio.Semaphore(99)",
    ),
    _never(
        "he_server/services/connections.py: prove",
        "connection.open and len(self._parties.get(party, ())) >= self._limits.party",
    ),
    *_returns("he_server/services/streams.py", "check_streams"),
    Edit("he_server/services/streams.py: listening", "if watch.looking is None or watch.looking.done():", "if True:"),
    *_returns("he_server/services/replay.py", "check_share"),
    # The wire, and stolen keys.
    _never("he_server/services/replay.py: ReplayCache", "name in self._seen"),
    _never(
        _REQUEST,
        "claims.exp - claims.iat > PROOF_SECONDS or not claims.iat - CLOCK_SKEW_SECONDS <= now < claims.exp",
        "a request seen",
    ),
    Edit(
        _REQUEST,
        "claims = verify(proof, RequestProof, party.public)",
        f"{_UNVERIFIED}claims = read_unverified(proof, RequestProof)",
        attack="a stolen credential",
    ),
    Edit(
        _REQUEST, "wanted = (audience, method, path)", "wanted = (audience, claims.htm, path)", "a signed request made"
    ),
    _never(_PUBLISHED, "said.task_hash != task.hash", "a model put in"),
    _never(_PUBLISHED, "said.sha256 != sha256", "a model put in"),
    Edit(
        _PUBLISHED,
        "said = verify(token, PublishedModel, task.config.server.key)",
        f"{_UNVERIFIED}said = read_unverified(token, PublishedModel)",
        "a model put in",
    ),
    *_returns("he_protocol/identity/jws.py", "_check_version"),
    _never("he_protocol/frames.py: head_size", "not prefix.startswith(MAGIC)"),
    Edit(
        _TRANSPORT,
        "ssl=self._tls if self._tls is not None else True",
        "ssl=False",
        "an impostor",
    ),
    Edit("he_server/http/auth.py: _checked", _REVOKED, "pass", "a stolen"),
    Edit("he_server/http/auth.py: _checked", "path=request.raw_path,", "path=request.path,", "a request changed"),
    Edit("he_party/files.py: private_directory", "missing.mkdir(mode=0o700,", "missing.mkdir(mode=0o777,"),
    *_returns("he_party/files.py", "close_database"),
    Edit("he_party/files.py: private_opener", ", 0o600)", ", 0o666)"),
    Edit("he_server/services/submit.py: _accept", _REVOKED, "pass"),
    *_returns("he_protocol/identity/revocation.py", "check_key"),
    Edit(
        "he_server/rules/manifests.py: check_update",
        "check_key(now.revocations, update.client, key)",
        "pass",
        "a thief's",
    ),
    Edit(
        "he_server/rules/manifests.py: check_update",
        "check_base_version(update.base_version, now.version, task.config.rounds.staleness)",
        "pass",
        "an update that becomes",
    ),
    Edit("he_client/client.py: task", "check_key(known, task.config.server.name, task.config.server.key)", "pass"),
    *_returns("he_protocol/identity/revocation.py", "check_newer"),
    Edit(
        "he_protocol/identity/revocation.py: read",
        "verify(token, RevocationList, authority)",
        "read_unverified(token, RevocationList)",
    ),
    Edit("keys/he_holder/ledger.py: learn_revocations", "if offered.number > (known or 0):", "if True:"),
    Edit(
        "keys/he_holder/epochs.py: destroy",
        "await asyncio.to_thread(erase_private, path)",
        "path.unlink()",
        "a holder's key files",
    ),
)
