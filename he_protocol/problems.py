"""Everything HushSum can refuse, as RFC 9457 problem types with stable URNs.

One `ProblemError` travels through the whole system: pure checks raise it, the server renders it as
`application/problem+json`, the client turns that document back into the same `ProblemError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

URN = "urn:hushsum:problem:"
TEXT_LIMIT = 1000
"""Characters of any text in a refusal: it may quote what a stranger sent."""


@dataclass(frozen=True)
class ProblemType:
    """A stable kind of refusal. `slug` never changes meaning once released."""

    slug: str
    status: int
    title: str

    @property
    def urn(self) -> str:
        return URN + self.slug


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """RFC 9457 body. Unknown members are ignored on reading, as section 3.2 of the RFC asks."""

    type: str
    title: str
    status: int
    detail: str
    expected: str = ""
    got: str = ""


def printable(text: str) -> str:
    """Text of a peer's choosing for a terminal or a log: escape sequences, line breaks and bidirectional
    overrides are shown instead of obeyed (CWE-150).

    >>> printable("ok\\x1b[2J")
    'ok\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ProblemError(Exception):
    """Input was refused; nothing was changed.

    `expected` and `got` never hold secret bytes. Texts are cut to `TEXT_LIMIT`, and lone surrogates replaced.
    """

    def __init__(self, problem: ProblemType, detail: str, *, expected: object = "", got: object = "") -> None:
        self.problem = problem
        self.detail = _short(detail)
        self.expected = _short(expected)
        self.got = _short(got)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Callable[[str, str, str, str], ProblemError], tuple[str, str, str, str]]:
        """So that a refusal comes back whole from a worker process."""
        return _restore, (self.problem.slug, self.detail, self.expected, self.got)

    def __str__(self) -> str:
        text = f"{self.problem.title}: {self.detail}"
        known = [f"{word} {what}" for word, what in (("expected", self.expected), ("got", self.got)) if what]
        if known:
            text += f" ({', '.join(known)})"
        return printable(f"{text} [{self.problem.slug}]")

    def document(self) -> bytes:
        """The refusal as `application/problem+json`."""
        return msgspec.json.encode(
            ProblemDocument(
                self.problem.urn, self.problem.title, self.problem.status, self.detail, self.expected, self.got
            )
        )

    @classmethod
    def from_document(cls, body: bytes, status: int) -> ProblemError:
        """Read a problem document; anything else becomes `unexpected-answer`."""
        try:
            doc = msgspec.json.decode(body, type=ProblemDocument)
            problem = PROBLEMS[doc.type.removeprefix(URN)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
            return cls(UNEXPECTED_ANSWER, "the peer did not answer with a known problem type", got=f"HTTP {status}")
        return cls(problem, doc.detail, expected=doc.expected, got=doc.got)


def _short(value: object) -> str:
    text = str(value).encode(errors="replace").decode()
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


def _restore(slug: str, detail: str, expected: str, got: str) -> ProblemError:
    return ProblemError(PROBLEMS[slug], detail, expected=expected, got=got)


PROBLEMS: dict[str, ProblemType] = {}


def _define(slug: str, status: int, title: str) -> ProblemType:
    problem = ProblemType(slug, status, title)
    PROBLEMS[slug] = problem
    return problem


# Reading bytes
UNKNOWN_PROTOCOL = _define("unknown-protocol", 400, "The message is of another version of the protocol")
MALFORMED = _define("malformed", 400, "The message cannot be read")
UNKNOWN_FIELD = _define("unknown-field", 400, "The message has a field that this version does not know")
TRAILING_BYTES = _define("trailing-bytes", 400, "There are bytes after the end of the message")
WRONG_SIZE = _define("wrong-size", 400, "A part does not have the size that the profile fixes")
TOO_LARGE = _define("too-large", 413, "The message is larger than its limit")
RESIDUE_RANGE = _define("residue-out-of-range", 400, "A residue is not below its modulus")
DIGEST_MISMATCH = _define("digest-mismatch", 400, "The bytes do not match the signed digest")

# Who speaks
UNAUTHENTICATED = _define("unauthenticated", 401, "The request carries no valid proof of identity")
BAD_SIGNATURE = _define("bad-signature", 401, "A signature does not verify")
FOREIGN_CREDENTIAL = _define("foreign-credential", 401, "The credential was issued by another authority")
EXPIRED_CREDENTIAL = _define("expired-credential", 401, "The credential is not valid now")
REVOKED_KEY = _define("revoked-key", 401, "The authority has revoked this key")
OLD_REVOCATIONS = _define("old-revocations", 409, "The revocation list is out of date")
REPLAYED_REQUEST = _define("replayed-request", 401, "This request proof was used before")
WRONG_ROLE = _define("wrong-role", 403, "The credential does not have the role that this needs")
NOT_ADDRESSED = _define("not-addressed", 403, "The message speaks for somebody else")

# What it is about
NOT_FOUND = _define("not-found", 404, "There is no such thing here")
METHOD_NOT_ALLOWED = _define("method-not-allowed", 405, "The resource does not answer this method")
WRONG_TASK = _define("wrong-task", 409, "The message belongs to another task")
WRONG_EPOCH = _define("wrong-epoch", 409, "The message belongs to another epoch")
OLD_EPOCH = _define("old-epoch", 409, "A later epoch of this task has been seen")
AMBIGUOUS_TASK = _define("ambiguous-task", 409, "Several signed tasks have this name and epoch")
BELOW_FLOOR = _define("below-floor", 409, "The task promises less than this device asks for")
WRONG_SCHEME = _define("wrong-scheme", 409, "The scheme or profile is not known to this version")
FINGERPRINT_MISMATCH = _define("fingerprint-mismatch", 409, "The parameters differ between the parties")
TENSEAL_VERSION = _define("tenseal-version", 409, "The installed TenSEAL is not the pinned release")
PRIVATE_CONTEXT = _define("private-context", 400, "The TenSEAL context holds a secret key")
KEYS_NOT_READY = _define("keys-not-ready", 409, "The committee has not finished its key ceremony")
EPOCH_DESTROYED = _define("epoch-destroyed", 409, "This holder has destroyed its keys of the epoch")
LEDGER_MISMATCH = _define("ledger-mismatch", 409, "The key belongs to another ledger, which knows what it has opened")

# Updates
UPDATE_ID_REUSED = _define("update-id-reused", 409, "This update id was used with other bytes")
ALREADY_IN_ROUND = _define("already-in-round", 409, "This client already has an update in the open round")
STALE_UPDATE = _define("stale-update", 409, "The update was computed on a model that is too old or not published")
CLOCK_SKEW = _define("clock-skew", 400, "The message was created in the future")

# Resumable uploads
WRONG_OFFSET = _define("wrong-offset", 409, "The upload stands at another offset")
UPLOAD_EXPIRED = _define("upload-expired", 410, "The upload was not finished in time")
TUS_VERSION = _define("tus-version", 412, "The server speaks another version of tus")
WRONG_MEDIA_TYPE = _define("wrong-media-type", 415, "The body is not of the media type that this needs")
UPLOAD_LOCKED = _define("upload-locked", 423, "Another request is writing to this upload")
TOO_MANY_UPLOADS = _define("too-many-uploads", 429, "The client has too many unfinished uploads")
CHECKSUM_MISMATCH = _define("checksum-mismatch", 460, "The chunk does not match its checksum")

# Rounds and openings
WRONG_STATE = _define("wrong-state", 409, "The round is not in the state that this needs")
TOO_FEW_CLIENTS = _define("too-few-clients", 409, "There are fewer clients than the task or the key holder asks for")
TOO_MANY_CLIENTS = _define("too-many-clients", 409, "There are more clients than the sum can hold")
DUPLICATE_CLIENT = _define("duplicate-client", 409, "A client appears twice in the manifest")
DUPLICATE_UPDATE = _define("duplicate-update", 409, "An update appears twice in the manifest")
MANIFEST_MISMATCH = _define("manifest-mismatch", 409, "The headers are not those that the manifest lists")
NUMBER_USED = _define("number-used", 409, "The holder has voted for another manifest with this opening number")
UPDATE_OPENED_BEFORE = _define("update-opened-before", 409, "The holder has voted for an opening of this update before")
NO_QUORUM = _define("no-quorum", 504, "Too few key holders answered in time")
REPEATED_BASE = _define("repeated-base", 409, "Without noise, a client sends one update for each model version")
NOT_CERTIFIED = _define("not-certified", 409, "Too few key holders have voted for the manifest")
EXCLUDED_UPDATE = _define("excluded-update", 409, "The update could not be opened and was left out of its round")
ABANDONED = _define("abandoned", 409, "An operator has given the round up")
BUDGET_EXHAUSTED = _define("budget-exhausted", 409, "The opening would exceed the privacy or flooding budget")
WRONG_SHARE = _define("wrong-share", 400, "A key holder's share is wrong")
COMBINE_REFUSED = _define("combine-refused", 409, "The shares do not open the sum")

# Ceremony
CEREMONY_CONFLICT = _define("ceremony-conflict", 409, "The key ceremony's messages contradict each other")
COMMITMENT_BROKEN = _define("commitment-broken", 409, "A revealed key part is not the one committed to")

# Planning and settings
SUM_COULD_WRAP = _define("sum-could-wrap", 400, "Sums under this plan could wrap around the modulus")
BAD_COMMITTEE = _define("bad-committee", 400, "The committee cannot give the promised bounds")
BAD_PLAN = _define("bad-plan", 400, "The task's plan is not consistent")
BAD_SETTINGS = _define("bad-settings", 400, "A setting is missing or wrong")
BAD_TENSORS = _define("bad-tensors", 400, "The tensors are not those of the task")
BAD_KEY_FILE = _define("bad-key-file", 400, "A key file cannot be used")

# Service
TOO_MANY_CONNECTIONS = _define("too-many-connections", 429, "There are too many connections")
TOO_MANY_STREAMS = _define("too-many-streams", 429, "There are too many event streams")
UNKNOWN_CODING = _define("unknown-coding", 415, "The body is encoded in a way that is not taken here")
OVERLOADED = _define("overloaded", 429, "The server takes no more at the moment; try again")
REQUEST_TIMEOUT = _define("request-timeout", 408, "The request came too slowly")
AUDIT_BROKEN = _define("audit-broken", 409, "The audit log is not the one that was written")
DISK_FULL = _define("disk-full", 507, "There is no room to store this durably")
DATABASE_UNAVAILABLE = _define("database-unavailable", 503, "The database does not answer")
EXPECTATION_FAILED = _define("expectation-failed", 417, "The server cannot do what the Expect header asks for")
SHUTTING_DOWN = _define("shutting-down", 503, "The server is draining; try again")
INTERNAL = _define("internal", 500, "The server failed; the incident was logged")
UNREACHABLE = _define("unreachable", 503, "The server cannot be reached")
UNEXPECTED_ANSWER = _define("unexpected-answer", 502, "The server answered with something else than the protocol")
