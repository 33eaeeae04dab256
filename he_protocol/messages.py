"""Every signed object that travels, as strict frozen structs, and the one strict decoder.

Unknown fields, trailing bytes and oversize input are refused before anything is used. Bytes are
base64 in JSON, times are whole Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from he_protocol.errors import ProblemError
from he_protocol.problems import MALFORMED, TOO_LARGE, TRAILING_BYTES, UNKNOWN_FIELD

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}(?!\n)$", description="lower-case name, at most 64")]
Display = Annotated[str, Meta(max_length=128, description="a name as people write it, empty if it is the same")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32, description="SHA-256")]
Key32 = Annotated[bytes, Meta(min_length=32, max_length=32, description="Ed25519 public key")]
UpdateId = Annotated[bytes, Meta(min_length=16, max_length=16, description="16 random bytes")]
HpkeKey = Annotated[bytes, Meta(min_length=1216, max_length=1216, description="ML-KEM-768 key, then X25519 key")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Time = Annotated[int, Meta(ge=0, le=2**53, description="Unix seconds")]
PositiveFloat = Annotated[float, Meta(gt=0)]
Role = Literal["client", "holder", "server"]

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Bytes of the largest JSON message: a manifest of a few ten thousand updates."""

REVOKED_LIMIT = 65_536
"""Keys on a revocation list: they fit into the largest message."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything that is signed; the class name is part of the JWS `typ`."""


class SectionEntry(Message, frozen=True):
    """One section of an update's body: its size in bytes and SHA-256."""

    name: Name
    size: Count
    sha256: Digest


class UpdateHeader(Message, frozen=True):
    """What a client signs for one update."""

    task_hash: Digest
    epoch: Count
    update_id: UpdateId
    client: Name
    base_version: Count
    created: Time
    sections: tuple[SectionEntry, ...]


class SignedUpdate(Message, frozen=True):
    """Head of an update frame: the header's JWS and the client's credential."""

    header: str
    credential: str


class ManifestEntry(Message, frozen=True):
    """One update of a round; every bucket of a round is opened on its own."""

    update_id: UpdateId
    client: Name
    header: Digest
    bucket: Count


class Manifest(Message, frozen=True):
    """The server's signed list of the updates in a closed round, sorted by update id.

    opening: numbers the sums that an epoch opens, 1, 2, 3, ...; key holders vote for one manifest of each number.
    formed: when the server made it; what depends on time is judged at that moment by everybody.
    """

    task_hash: Digest
    epoch: Count
    round: Positive
    opening: Positive
    formed: Time
    model_version: Count
    updates: tuple[ManifestEntry, ...]


class Exclusion(Message, frozen=True):
    """An update that should not be in a manifest, and the problem's slug."""

    update_id: UpdateId
    problem: Name


class Screening(Message, frozen=True):
    """What a holder thinks of the updates of a manifest that is not final yet. It is not binding.

    seen_opening, seen_version: the highest opening number and model version in the holder's votes.
    """

    task_hash: Digest
    epoch: Count
    round: Positive
    manifest: Digest
    holder: Name
    seen_opening: Count
    seen_version: Count
    excluded: tuple[Exclusion, ...]


class Vote(Message, frozen=True):
    """A holder's binding statement: this manifest, and no other, has this opening number."""

    task_hash: Digest
    epoch: Count
    opening: Positive
    manifest: Digest
    holder: Name


class Objection(Message, frozen=True):
    """A holder's refusal of a whole manifest: the problem's slug and what is wrong. See `Screening`."""

    task_hash: Digest
    epoch: Count
    round: Positive
    manifest: Digest
    holder: Name
    seen_opening: Count
    seen_version: Count
    problem: Name
    detail: Annotated[str, Meta(max_length=2000)]


class SubshareDigest(Message, frozen=True):
    """SHA-256 of what a holder says about one subshare."""

    subshare: Count
    sha256: Digest


class ShareVector(Message, frozen=True):
    """SHA-256 of what a holder releases of one subshare, for one bucket of a manifest."""

    bucket: Count
    subshare: Count
    sha256: Digest


class FailedBucket(Message, frozen=True):
    """A bucket that a holder cannot open: its first update whose key section is of no use, and the problem's slug."""

    bucket: Count
    update_id: UpdateId
    problem: Name


class Share(Message, frozen=True):
    """A holder's release for one manifest: every subshare that it knows of every bucket, bucket by bucket.

    The vectors follow as bytes in this order. A bucket stands in `vectors` or, once, in `failed`.
    """

    task_hash: Digest
    epoch: Count
    round: Positive
    manifest: Digest
    holder: Name
    vectors: tuple[ShareVector, ...]
    failed: tuple[FailedBucket, ...]


class SealedSeeds(Message, frozen=True):
    """One holder's seeds for another holder, in an HPKE envelope."""

    to: Name
    box: bytes


class Post(Message, frozen=True):
    """What a holder puts on the board of a key ceremony: the members that the messages of all phases have."""

    task_hash: Digest
    epoch: Count
    holder: Name


class Contribution(Post, frozen=True):
    """Ceremony phase 1: seeds for every subshare that two holders share."""

    boxes: tuple[SealedSeeds, ...]


class Commitment(Post, frozen=True):
    """Ceremony phase 2: digests of every public-key share, before anyone reveals one."""

    transcript: Digest
    digests: tuple[SubshareDigest, ...]


class Reveal(Post, frozen=True):
    """Ceremony phase 3: the public-key shares that this holder is first to know; their bytes follow."""

    transcript: Digest
    digests: tuple[SubshareDigest, ...]


class Confirmation(Post, frozen=True):
    """Ceremony phase 4: this holder saw every commitment kept and computed this joint key."""

    transcript: Digest
    key: Digest


class Receipt(Message, frozen=True):
    """The server's signed statement that an update is durable."""

    task_hash: Digest
    update_id: UpdateId
    client: Name
    header: Digest
    received: Time


class Jwk(Message, frozen=True):
    """RFC 8037 public key."""

    x: str
    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"


class Cnf(Message, frozen=True):
    """RFC 7800 confirmation."""

    jwk: Jwk


class Credential(Message, frozen=True):
    """The authority's statement about one party: a JWT (RFC 7519) with the party's key in `cnf`."""

    iss: str
    sub: Name
    role: Role
    iat: Time
    exp: Time
    cnf: Cnf
    hpke: bytes = b""
    display: Display = ""


class EnrollRequest(Message, frozen=True):
    """What a party asks the authority to certify, signed with its own key to prove possession.

    possession: of a key holder, the signature of its HPKE key (`he_protocol.envelope.possession_message`).
    invitation, invited: the id of an invitation and its MAC (`he_protocol.identity.invitations`), empty without one.
    """

    name: Name
    role: Role
    key: Key32
    created: Time
    hpke: bytes = b""
    possession: bytes = b""
    invitation: bytes = b""
    invited: bytes = b""
    display: Display = ""


class RevocationList(Message, frozen=True):
    """The authority's list of signing keys that are no longer valid: SHA-256 of each, ascending.

    Of two lists the one with the higher number counts; after `valid_until` a newer one is needed.
    """

    number: Positive
    issued: Time
    valid_until: Time
    revoked: Annotated[tuple[Digest, ...], Meta(max_length=REVOKED_LIMIT)]


class AuditHead(Message, frozen=True):
    """The server's signed statement about its audit log: number and hash of the last entry, at this time."""

    server: Name
    seq: Count
    hash: Digest
    time: Time


class PublishedModel(Message, frozen=True):
    """The server's signed statement that the file with this digest is this version of the task's model."""

    task_hash: Digest
    version: Count
    sha256: Digest


class RequestProof(Message, frozen=True):
    """Short-lived proof for one HTTP request, in the manner of RFC 9449 (DPoP)."""

    aud: Name
    htm: str
    htu: str
    iat: Time
    exp: Time
    jti: str
    ath: str


M = TypeVar("M")


def to_json(message: object) -> bytes:
    """JSON bytes of a message: what is signed and hashed is exactly these bytes."""
    return msgspec.json.encode(message)


def from_json(data: bytes, kind: type[M], *, limit: int = MESSAGE_LIMIT) -> M:
    """Read one message strictly.

    Raises `too-large`, `malformed`, `unknown-field` or `trailing-bytes`.
    """
    if len(data) > limit:
        raise ProblemError(TOO_LARGE, f"{kind.__name__} is too long", expected=f"at most {limit} bytes", got=len(data))
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last for what it skips
        text = str(error)
        if "unknown field" in text:
            problem = UNKNOWN_FIELD
        elif "trailing characters" in text:
            problem = TRAILING_BYTES
        else:
            problem = MALFORMED
        raise ProblemError(problem, f"{kind.__name__}: {text}") from None
