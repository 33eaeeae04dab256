"""Everything HushSum can refuse, as RFC 9457 problem types with stable URNs. `he_protocol.errors` raises them.

Each type says whether to try again (`retry`), what kind of thing is wrong (`family`), and what to do. Whoever decides
between keeping bytes, dropping them, and asking again, goes by these and keeps no list of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

URN = "urn:hushsum:problem:"

Retry: TypeAlias = Literal["never", "same-request", "after-change"]
"""`never`: the same bytes always meet it. `same-request`: the same request may pass later, and its sender has nothing
to change. `after-change`: it may pass once somebody has changed something else than the bytes: a credential, a clock,
a setting, a program."""
Family: TypeAlias = Literal[
    "invalid-message", "incompatible", "not-authorised", "task", "conflict", "unavailable", "setup"
]
UploadStep: TypeAlias = Literal["", "ask-offset", "begin-anew"]
"""What a resumable upload that meets the problem does next: ask how far it is, or begin again, once."""
RETRIES: tuple[Retry, ...] = get_args(Retry)


@dataclass(frozen=True)
class ProblemType:
    """A stable kind of refusal. `slug` never changes meaning once released. `what_to_do` is one sentence."""

    slug: str
    status: int
    title: str
    family: Family
    retry: Retry
    what_to_do: str
    upload: UploadStep = ""

    @property
    def urn(self) -> str:
        return URN + self.slug

    @property
    def drops(self) -> bool:
        """Whether an encrypted update that meets it is of no more use to its client."""
        return self.retry == "never"

    @property
    def transient(self) -> bool:
        """Whether asking again in a moment may help: the transport does so by itself."""
        return self.family == "unavailable" and self.retry == "same-request"

    @property
    def may_pass(self) -> bool:
        """Whether the receiver should keep the bytes: the same ones may be accepted later."""
        return self.family == "unavailable" or self.retry == "same-request"

    @property
    def only_this_round(self) -> bool:
        """Whether the next round may go well for a client that meets it: nothing is wrong with the task, or with it."""
        return self.family in {"conflict", "unavailable"}

    @property
    def damage(self) -> bool:
        """Whether the bytes themselves are wrong: of stored ones that were checked, that they are damaged."""
        return self.family == "invalid-message" and self.retry == "never"


PROBLEMS: dict[str, ProblemType] = {}


@dataclass(frozen=True)
class _Kind:
    """A type that still has to be told when to try again, and what to do."""

    family: Family
    slug: str
    status: int
    title: str
    upload: UploadStep

    def never(self, what_to_do: str) -> ProblemType:
        return self._define("never", what_to_do)

    def same_request(self, what_to_do: str) -> ProblemType:
        return self._define("same-request", what_to_do)

    def after_change(self, what_to_do: str) -> ProblemType:
        return self._define("after-change", what_to_do)

    def _define(self, retry: Retry, what_to_do: str) -> ProblemType:
        made = ProblemType(self.slug, self.status, self.title, self.family, retry, what_to_do, self.upload)
        PROBLEMS[self.slug] = made
        return made


@dataclass(frozen=True)
class _Types:
    """Makes the types of one family."""

    family: Family

    def __call__(self, slug: str, status: int, title: str, upload: UploadStep = "") -> _Kind:
        return _Kind(self.family, slug, status, title, upload)


# What was sent is not a message of the protocol, or not a right one
_invalid = _Types("invalid-message")
MALFORMED = _invalid("malformed", 400, "The message cannot be read").after_change(
    "Send it again whole; if that fails too, report it: the sender's program writes it wrongly."
)
TRAILING_BYTES = _invalid("trailing-bytes", 400, "There are bytes after the end of the message").after_change(
    "Send it again without what follows; if that fails too, report it."
)
WRONG_SIZE = _invalid("wrong-size", 400, "A section does not have the size that the profile fixes").never(
    "Make the message anew for the task's own profile and sections."
)
TOO_LARGE = _invalid("too-large", 413, "The message is larger than its limit").after_change(
    "Send less at once, or have the receiver's limit raised."
)
RESIDUE_RANGE = _invalid("residue-out-of-range", 400, "A residue is not below its modulus").never(
    "Make the message anew: its numbers are not reduced modulo the profile's primes."
)
DIGEST_MISMATCH = _invalid("digest-mismatch", 400, "The bytes do not match the signed digest", "begin-anew").never(
    "Send the bytes that were signed, or make and sign new ones."
)
PRIVATE_CONTEXT = _invalid("private-context", 400, "The TenSEAL context holds a secret key").never(
    "Make a context without its secret key, and treat the key that was in it as known to others."
)
CLOCK_SKEW = _invalid("clock-skew", 400, "The message was created in the future").same_request(
    "Set the sender's clock right; the message passes once its time has come."
)
CHECKSUM_MISMATCH = _invalid(
    "checksum-mismatch", 460, "The chunk does not match its checksum", "ask-offset"
).same_request("Send the chunk again from where the upload stands: it was damaged on its way.")
WRONG_MEDIA_TYPE = _invalid("wrong-media-type", 415, "The body is not of the media type that this needs").after_change(
    "Name the Content-Type that was expected."
)
UNKNOWN_CODING = _invalid("unknown-coding", 415, "The body is encoded in a way that is not taken here").after_change(
    "Send the body as it is, without compression or another coding."
)
EXPECTATION_FAILED = _invalid(
    "expectation-failed", 417, "The server cannot do what the Expect header asks for"
).after_change("Leave the Expect header out, or send `100-continue`.")
METHOD_NOT_ALLOWED = _invalid("method-not-allowed", 405, "The resource does not answer this method").after_change(
    "Use a method that the Allow header names."
)
WRONG_SHARE = _invalid("wrong-share", 400, "A key holder's share is wrong").never(
    "Look for which holder sent it, and have that holder checked: an honest one makes no such share."
)
AUDIT_BROKEN = _invalid("audit-broken", 409, "The audit log is not the one that was written").never(
    "Compare with a copy of the log from before, and find out who could write to the database."
)


# The parties run programs or parameters that do not go together
_incompatible = _Types("incompatible")
UNKNOWN_PROTOCOL = _incompatible("unknown-protocol", 400, "The message is of another version of the protocol").never(
    "Install a release of the same protocol on both sides, and make the message anew."
)
UNKNOWN_FIELD = _incompatible(
    "unknown-field", 400, "The message has a field that this version does not know"
).after_change("Update the program of whoever reads it.")
WRONG_SCHEME = _incompatible("wrong-scheme", 409, "The scheme or profile is not known to this version").after_change(
    "Install a release that has the task's scheme and profile."
)
FINGERPRINT_MISMATCH = _incompatible(
    "fingerprint-mismatch", 409, "The parameters differ between the parties"
).after_change("Compare the releases of the parties: one of them has other parameters under this name.")
TENSEAL_VERSION = _incompatible("tenseal-version", 409, "The installed TenSEAL is not the pinned release").after_change(
    "Install the TenSEAL release that was expected."
)
MISSING_PACKAGE = _incompatible("missing-package", 409, "A package that this needs is not installed").after_change(
    "Install the extra that the detail names."
)
TUS_VERSION = _incompatible("tus-version", 412, "The server speaks another version of tus").after_change(
    "Speak the version of tus that the answer names."
)


# Identity has not shown that they may
_denied = _Types("not-authorised")
UNAUTHENTICATED = _denied("unauthenticated", 401, "The request carries no valid proof of identity").after_change(
    "Sign the request with a key that has a credential, for this server, with a right clock."
)
BAD_SIGNATURE = _denied("bad-signature", 401, "A signature does not verify").after_change(
    "Sign it with the key that its credential names."
)
FOREIGN_CREDENTIAL = _denied("foreign-credential", 401, "The credential was issued by another authority").after_change(
    "Use the credential of the authority that the receiver trusts."
)
EXPIRED_CREDENTIAL = _denied("expired-credential", 401, "The credential is not valid now").after_change(
    "Have the authority issue a new credential."
)
REVOKED_KEY = _denied("revoked-key", 401, "The authority has revoked this key").after_change(
    "Make a new key and have the authority enroll it, if it was revoked by mistake."
)
OLD_REVOCATIONS = _denied("old-revocations", 409, "The revocation list is out of date").after_change(
    "Have the authority publish a new revocation list, and bring it to the server."
)
REPLAYED_REQUEST = _denied("replayed-request", 401, "This request proof was used before").after_change(
    "Sign the request anew."
)
WRONG_ROLE = _denied("wrong-role", 403, "The credential does not have the role that this needs").after_change(
    "Use a credential of the role that was expected."
)
NOT_ADDRESSED = _denied("not-addressed", 403, "The message speaks for another party").after_change(
    "Send it under the name of the party that it speaks for."
)
NAME_TAKEN = _denied("name-taken", 409, "Another party has this name").after_change(
    "Take another name; or, if it is the same party with a new key, compare the fingerprint with its owner: --new-key."
)
BAD_INVITATION = _denied("bad-invitation", 403, "The invitation is not good for this request").after_change(
    "Ask the authority for a new invitation, and make the request with it."
)


# It belongs to another task than the one that is meant, or the task is nothing to take part in
_task = _Types("task")
WRONG_TASK = _task("wrong-task", 409, "The message belongs to another task").never(
    "Make the message anew for the task that it is sent to."
)
WRONG_EPOCH = _task("wrong-epoch", 409, "The message belongs to another epoch").never(
    "Make the message anew for the epoch that runs now."
)
OLD_EPOCH = _task("old-epoch", 409, "A later epoch of this task has been seen").after_change(
    "Ask the server's operator to list the newest epoch of the task."
)
AMBIGUOUS_TASK = _task("ambiguous-task", 409, "Several signed tasks have this name and epoch").after_change(
    "Ask the authority which of them is meant, and name that one by its hash."
)
BELOW_FLOOR = _task("below-floor", 409, "The task promises less than this device asks for").after_change(
    "Take part in another task, or lower your floors knowingly."
)
TASK_CLOSED = _task("task-closed", 409, "The task takes no more updates").never(
    "Take part in the job's next epoch, once the authority has signed one."
)
EPOCH_DESTROYED = _task("epoch-destroyed", 409, "This holder has destroyed its keys of the epoch").never(
    "Have the authority start a new epoch."
)
BUDGET_EXHAUSTED = _task(
    "budget-exhausted", 409, "The opening would exceed the privacy or flooding budget"
).after_change("Have the authority start a new epoch, within what its clients may spend.")


# It does not fit what stands, what was done before, or what a rule protects
_conflict = _Types("conflict")
NOT_FOUND = _conflict("not-found", 404, "There is no such thing here", "begin-anew").after_change(
    "Check the name; what is not there yet may come, and what was deleted does not."
)
KEYS_NOT_READY = _conflict("keys-not-ready", 409, "The committee has not finished its key ceremony").same_request(
    "Wait for the key holders to finish the ceremony."
)
TASK_PAUSED = _conflict("task-paused", 409, "The task takes no updates for now").same_request(
    "Wait until the server's operator lets the task go on, or the round before is over."
)
LEDGER_MISMATCH = _conflict(
    "ledger-mismatch", 409, "The key belongs to another ledger, which knows what it has opened"
).after_change("Use the ledger that belongs to this key, or start with a new key.")
UPDATE_ID_REUSED = _conflict("update-id-reused", 409, "This update id was used with other bytes").never(
    "Seal a new update: it gets an id of its own."
)
ALREADY_IN_ROUND = _conflict(
    "already-in-round", 409, "This client already has an update in the open round"
).same_request("Wait for the next round.")
STALE_UPDATE = _conflict(
    "stale-update", 409, "The update was computed on a model that is too old or not published"
).never("Fetch the model again and train on it.")
WRONG_OFFSET = _conflict("wrong-offset", 409, "The upload stands at another offset", "ask-offset").after_change(
    "Ask where the upload stands, and go on from there."
)
UPLOAD_EXPIRED = _conflict("upload-expired", 410, "The upload was not finished in time", "begin-anew").after_change(
    "Begin the upload again."
)
WRONG_STATE = _conflict("wrong-state", 409, "The round is not in the state that this needs").same_request(
    "Look at the round: it may come into that state, or has left it for good."
)
TOO_FEW_CLIENTS = _conflict(
    "too-few-clients", 409, "There are fewer clients than the task or the key holder asks for"
).after_change("Bring more clients, or give them longer to send.")
TOO_MANY_CLIENTS = _conflict("too-many-clients", 409, "There are more clients than the sum can hold").never(
    "Leave some updates for another round."
)
DUPLICATE_CLIENT = _conflict("duplicate-client", 409, "A client appears twice in the manifest").never(
    "Form the manifest with one update of each client."
)
DUPLICATE_UPDATE = _conflict("duplicate-update", 409, "An update appears twice in the manifest").never(
    "Form the manifest with each update once."
)
MANIFEST_MISMATCH = _conflict(
    "manifest-mismatch", 409, "The headers are not those that the manifest lists"
).after_change("Serve the headers that the manifest lists.")
NUMBER_USED = _conflict("number-used", 409, "The holder has voted for another manifest with this opening number").never(
    "Form another manifest, under the next opening number."
)
UPDATE_OPENED_BEFORE = _conflict(
    "update-opened-before", 409, "The holder has voted for an opening of this update before"
).never("Form the manifest without this update.")
REPEATED_BASE = _conflict(
    "repeated-base", 409, "Without noise, a client sends one update for each model version"
).never("Fetch the model again and train on it.")
NOT_CERTIFIED = _conflict("not-certified", 409, "Too few key holders have voted for the manifest").same_request(
    "Wait until enough key holders have voted."
)
EXCLUDED_UPDATE = _conflict(
    "excluded-update", 409, "The update could not be opened and was left out of its round"
).never("Read the detail for what key holders saw, and send a new update.")
ABANDONED = _conflict("abandoned", 409, "An operator has given the round up").never(
    "Send a new update to the next round."
)
COMBINE_REFUSED = _conflict("combine-refused", 409, "The shares do not open the sum").never(
    "Read the detail for the holder or the update that does not fit, and send a new update."
)
CEREMONY_CONFLICT = _conflict("ceremony-conflict", 409, "The key ceremony's messages contradict each other").never(
    "Find the holder that said two things, and begin a new epoch."
)
COMMITMENT_BROKEN = _conflict(
    "commitment-broken", 409, "A revealed public-key share is not the one committed to"
).never("Find the holder that broke its commitment, and begin a new epoch without it.")


# Somebody could not answer now; nothing is wrong with what was asked
_unavailable = _Types("unavailable")
NO_QUORUM = _unavailable("no-quorum", 504, "Too few key holders answered in time").same_request(
    "Bring the missing key holders back; until then there is nothing to do but wait."
)
UPLOAD_LOCKED = _unavailable("upload-locked", 423, "Another request is writing to this upload").same_request(
    "Wait until the other request has ended."
)
TOO_MANY_UPLOADS = _unavailable("too-many-uploads", 429, "The client has too many unfinished uploads").same_request(
    "Finish or delete an upload, or let one expire."
)
TOO_MANY_CONNECTIONS = _unavailable("too-many-connections", 429, "There are too many connections").same_request(
    "Wait, and keep fewer connections open."
)
TOO_MANY_STREAMS = _unavailable("too-many-streams", 429, "There are too many event streams").same_request(
    "Wait, and keep fewer event streams open."
)
OVERLOADED = _unavailable("overloaded", 429, "The server takes no more at the moment; try again").same_request(
    "Wait as long as Retry-After says, and try again."
)
REQUEST_TIMEOUT = _unavailable("request-timeout", 408, "The request came too slowly").same_request(
    "Try again, if need be over a faster line."
)
DISK_FULL = _unavailable("disk-full", 507, "There is no room to store this durably").same_request(
    "Make room on the disk; what was sent can be sent again then."
)
DATABASE_UNAVAILABLE = _unavailable("database-unavailable", 503, "The database does not answer").same_request(
    "Try again; if it lasts, the operator looks at the database."
)
SHUTTING_DOWN = _unavailable("shutting-down", 503, "The server is draining; try again").same_request(
    "Try again in a moment."
)
INTERNAL = _unavailable("internal", 500, "The server failed; the incident was logged").after_change(
    "Tell the operator when it happened: the server's log says what failed."
)
REFUSED_BETWEEN = _unavailable(
    "refused-between", 502, "Something between here and the server does not let this through"
).after_change(
    "Have the proxy let it through: nginx's client_max_body_size; PUT, PATCH, HEAD, DELETE, or X-HTTP-Method-Override."
)
UNREACHABLE = _unavailable("unreachable", 503, "The server cannot be reached").same_request(
    "Check the address and the network, and try again."
)
UNEXPECTED_ANSWER = _unavailable(
    "unexpected-answer", 502, "The server answered with something else than the protocol"
).same_request("Check the address and what stands between: the answer is not of a HushSum server.")


# A plan, a setting or a file of our own cannot be used
_setup = _Types("setup")
SUM_COULD_WRAP = _setup("sum-could-wrap", 400, "Sums under this plan could wrap around the modulus").never(
    "Plan for fewer clients, a smaller range, or a profile with more room."
)
BAD_COMMITTEE = _setup("bad-committee", 400, "The committee cannot give the promised bounds").never(
    "Choose numbers that the committee's bounds allow."
)
BAD_PLAN = _setup("bad-plan", 400, "The task's plan is not consistent").never(
    "Change what the detail names, and sign the task anew."
)
BAD_SETTINGS = _setup("bad-settings", 400, "A setting is missing or wrong").after_change("Set what the detail names.")
BAD_TENSORS = _setup("bad-tensors", 400, "The tensors are not those of the task").never(
    "Give tensors of the task's names, shapes and types, all of them finite."
)
BAD_MODULE = _setup("bad-module", 400, "The module cannot be trained in this way").after_change(
    "Put what the detail names in the layer's place, or give parameters a shape, values and a gradient."
)
BAD_KEY_FILE = _setup("bad-key-file", 400, "A key file cannot be used").after_change(
    "Use the right file and passphrase, or restore the file from its backup."
)
