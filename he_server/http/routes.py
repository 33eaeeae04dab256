"""The one table of routes: what the server answers, what it needs, and what it documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

from he_protocol import problems as p
from he_protocol import tus
from he_protocol.documents import (
    AuditStatus,
    Board,
    BoardEntry,
    Heads,
    Opening,
    PendingOpenings,
    Revoked,
    RoundStatus,
    TaskList,
    TaskStatus,
    UpdateReceipt,
    UpdateStatus,
)
from he_protocol.frames import CONTENT_TYPE as FRAME
from he_protocol.identity.jws import TOKEN_LIMIT
from he_protocol.paths import AUDIT_HEAD, REVOCATIONS
from he_protocol.problems import ProblemType
from he_server.http.auth import Access
from he_server.http.handlers import board, health, openings, revocations, rounds, tasks, updates, uploads
from he_server.http.responses import BYTES
from he_server.rules.bodies import FRAME_HEAD_BYTES, Sender
from he_server.services.context import ServerContext

Handler: TypeAlias = Callable[[ServerContext, web.Request], Awaitable[web.StreamResponse]]
SenderOf: TypeAlias = Callable[[ServerContext, web.Request], Awaitable[Sender]]

JSON = "application/json"
TASK = "/v1/tasks/{task}"


@dataclass(frozen=True)
class Content:
    """A body: its media type and, where it is JSON, the type of the document."""

    media: str
    kind: object = bytes
    text: str = ""


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Of a body that it `takes`, `sender` tells whose it is and how large it may be; where anybody may send it, `held`
    bytes of it are in memory at once.
    """

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    answers: Mapping[int, Content | None]
    takes: Content | None = None
    problems: tuple[ProblemType, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    sender: SenderOf = updates.sender_of_update
    held: int = 0


_FRAME = (p.UNKNOWN_PROTOCOL, p.MALFORMED, p.TOO_LARGE, p.DISK_FULL)
_TOKEN = (p.UNKNOWN_FIELD, p.TRAILING_BYTES, p.BAD_SIGNATURE)
_SIGNED = (*_TOKEN, p.NOT_ADDRESSED, p.WRONG_TASK, p.WRONG_EPOCH)
_REVOCATIONS = (p.UNKNOWN_PROTOCOL, p.MALFORMED, p.TOO_LARGE, p.DISK_FULL, *_TOKEN)
_SECTIONS = (p.WRONG_SIZE, p.DIGEST_MISMATCH, p.RESIDUE_RANGE)
_SAFETENSORS = Content(BYTES, text="safetensors")

HEALTH = (
    Route("GET", "/healthz", health.get_health, "public", "The process lives", {200: Content(JSON, health.Health)}),
    Route(
        "GET",
        "/readyz",
        health.get_ready,
        "public",
        "Database, blobs and worker are usable",
        {200: Content(JSON, health.Health)},
        problems=(p.SHUTTING_DOWN, p.DISK_FULL, p.OVERLOADED),
    ),
    Route("GET", "/metrics", health.get_metrics, "public", "Prometheus metrics", {200: Content("text/plain", str)}),
    Route(
        "GET",
        AUDIT_HEAD,
        health.get_audit_head,
        "public",
        "The head of the audit log, signed: keep it, and no earlier entry can be changed unseen",
        {200: Content(JSON, AuditStatus)},
    ),
    Route(
        "GET",
        REVOCATIONS,
        revocations.get_revocations,
        "public",
        "The authority's newest revocation list",
        {200: Content(JSON, Revoked)},
    ),
    Route(
        "PUT",
        REVOCATIONS,
        revocations.put_revocations,
        "public",
        "Bring a newer revocation list: the authority's signature is all that it needs",
        {201: Content(JSON, Revoked), 200: Content(JSON, Revoked)},
        Content("application/jose", text="The RevocationList's compact JWS."),
        (*_REVOCATIONS, p.OLD_REVOCATIONS),
        held=TOKEN_LIMIT,
    ),
    Route("GET", "/v1/openapi.json", health.get_openapi, "public", "This document", {200: Content(JSON, dict)}),
)

_UPDATE = (
    *_FRAME,
    *_SIGNED,
    *_SECTIONS,
    p.FOREIGN_CREDENTIAL,
    p.EXPIRED_CREDENTIAL,
    p.REVOKED_KEY,
    p.CLOCK_SKEW,
    p.TASK_PAUSED,
    p.TASK_CLOSED,
    p.STALE_UPDATE,
    p.UPDATE_ID_REUSED,
    p.ALREADY_IN_ROUND,
    p.REPEATED_BASE,
)

UPLOAD = "/v1/uploads/{upload}"
_TUS = {"Tus-Resumable": tus.VERSION}
_OFFSET = {"Upload-Offset": "where the chunk begins", "Upload-Checksum": "sha1 or sha256, and the chunk's digest"}
_CHUNK = Content(tus.CONTENT_TYPE, text="The next bytes of the frame that a PUT of the update would send.")
_UPLOAD = (p.TUS_VERSION, p.UPLOAD_EXPIRED, p.UPLOAD_LOCKED)
_PATCH = (*_UPDATE, *_UPLOAD, p.WRONG_OFFSET, p.WRONG_MEDIA_TYPE, p.CHECKSUM_MISMATCH)

UPLOADS = (
    Route("OPTIONS", f"{TASK}/uploads", uploads.options_uploads, "public", "What of tus is spoken", {204: None}),
    Route(
        "POST",
        f"{TASK}/uploads",
        uploads.post_upload,
        "client",
        "Begin a resumable upload (tus 1.0.0) of one update; creating it again returns the existing one",
        {201: None},
        problems=(p.TUS_VERSION, p.TOO_LARGE, p.WRONG_SIZE, p.TOO_MANY_UPLOADS, p.OVERLOADED, p.DISK_FULL),
        headers=_TUS
        | {"Upload-Length": "bytes of the frame", "Upload-Metadata": "the key update, with the update's id in hex"},
    ),
    Route(
        "HEAD",
        UPLOAD,
        uploads.head_upload,
        "public",
        "How far an upload is",
        {200: None},
        problems=_UPLOAD,
        headers=_TUS,
    ),
    Route(
        "PATCH",
        UPLOAD,
        uploads.patch_upload,
        "public",
        "Append a chunk; the last one sends the update, as its PUT does",
        {204: None},
        _CHUNK,
        _PATCH,
        headers=_TUS | _OFFSET,
        sender=uploads.sender_of_chunk,
    ),
    Route(
        "GET",
        UPLOAD,
        uploads.get_upload,
        "public",
        "The receipt of an upload that was accepted, or why it was not",
        {200: Content(JSON, UpdateReceipt)},
        problems=(*_UPDATE, *_UPLOAD, p.WRONG_OFFSET),
        headers=_TUS,
    ),
    Route(
        "DELETE",
        UPLOAD,
        uploads.delete_upload,
        "public",
        "Forget an upload",
        {204: None},
        problems=_UPLOAD,
        headers=_TUS,
    ),
)

ROUTES: tuple[Route, ...] = (
    *HEALTH,
    *UPLOADS,
    Route("GET", "/v1/tasks", tasks.list_tasks, "public", "All tasks", {200: Content(JSON, TaskList)}),
    Route(
        "POST",
        "/v1/tasks",
        tasks.post_task,
        "public",
        "Add a task that the authority signed for this server; idempotent",
        {201: Content(JSON, TaskStatus), 200: Content(JSON, TaskStatus)},
        Content(FRAME, text="Head: the TaskConfig's JWS. Body: the initial model, safetensors, float32."),
        (
            *_FRAME,
            *_TOKEN,
            p.NOT_ADDRESSED,
            p.BAD_TENSORS,
            p.DIGEST_MISMATCH,
            p.WRONG_SCHEME,
            p.FINGERPRINT_MISMATCH,
            p.BAD_COMMITTEE,
            p.BAD_PLAN,
            p.SUM_COULD_WRAP,
        ),
        held=FRAME_HEAD_BYTES,
    ),
    Route("GET", TASK, tasks.get_task, "public", "One task and where it stands", {200: Content(JSON, TaskStatus)}),
    Route(
        "GET",
        f"{TASK}/model",
        tasks.get_model,
        "any",
        "A published model; HushSum-Model is its PublishedModel's compact JWS, the ETag its SHA-256",
        {200: _SAFETENSORS, 304: None},
        query={"version": "a version; the newest by default"},
        headers={"If-None-Match": "the ETag of the model that the party has"},
    ),
    Route(
        "PUT",
        f"{TASK}/updates/{{update}}",
        updates.put_update,
        "client",
        "Send an update; idempotent. The answer means that it is durable",
        {201: Content(JSON, UpdateReceipt), 200: Content(JSON, UpdateReceipt)},
        Content(FRAME, text="Head: SignedUpdate as JSON. Body: the scheme's sections, in order."),
        _UPDATE,
    ),
    Route(
        "GET",
        f"{TASK}/updates/{{update}}",
        updates.get_update,
        "client",
        "Where an own update is",
        {200: Content(JSON, UpdateStatus)},
    ),
    Route(
        "GET",
        f"{TASK}/rounds/{{round}}/key-sections",
        openings.get_key_sections,
        "holder",
        "The key sections, in the manifest's order, while the round is opened",
        {200: Content(BYTES)},
        problems=(p.WRONG_STATE,),
    ),
    Route(
        "GET",
        f"{TASK}/rounds",
        rounds.list_rounds,
        "any",
        "The last 50 rounds, newest first",
        {200: Content(JSON, list[RoundStatus])},
    ),
    Route(
        "GET",
        f"{TASK}/rounds/{{round}}",
        rounds.get_round,
        "any",
        "One round",
        {200: Content(JSON, RoundStatus)},
    ),
    Route(
        "GET",
        f"{TASK}/rounds/{{round}}/sum",
        rounds.get_sum,
        "any",
        "The opened sum of a published round: one int64 tensor named sum",
        {200: _SAFETENSORS},
        problems=(p.WRONG_STATE,),
    ),
    Route(
        "GET",
        f"{TASK}/events",
        rounds.get_events,
        "any",
        "Server-sent events `round`, each a RoundStatus: the newest round, then every change of state",
        {200: Content("text/event-stream", str)},
        problems=(p.TOO_MANY_STREAMS,),
    ),
    Route(
        "GET",
        f"{TASK}/openings",
        openings.list_openings,
        "holder",
        "Rounds that wait for this holder: to screen their updates, for its vote, or for its share",
        {200: Content(JSON, PendingOpenings), 304: None},
        problems=(p.TOO_MANY_STREAMS,),
        headers={
            "If-None-Match": "the ETag of what the holder knows",
            "Prefer": "wait=N: answer when there is something else, after N seconds at the latest (RFC 7240)",
        },
    ),
    Route(
        "GET",
        f"{TASK}/rounds/{{round}}/opening",
        openings.get_opening,
        "holder",
        "What a round asks of its key holders: the manifest, and the votes for it",
        {200: Content(JSON, Opening)},
        problems=(p.WRONG_STATE,),
    ),
    Route(
        "GET",
        f"{TASK}/rounds/{{round}}/heads",
        openings.get_heads,
        "holder",
        "Every update's signed head, in the manifest's order",
        {200: Content(JSON, Heads)},
        problems=(p.WRONG_STATE,),
    ),
    Route(
        "PUT",
        f"{TASK}/rounds/{{round}}/answers/{{holder}}",
        openings.put_answer,
        "holder",
        "What a holder says about a round's manifest; idempotent",
        {201: Content(JSON, RoundStatus), 200: Content(JSON, RoundStatus)},
        Content("application/jose", text="The compact JWS of a Screening, a Vote or an Objection."),
        (p.UNKNOWN_PROTOCOL, p.MALFORMED, p.TOO_LARGE, *_SIGNED, p.WRONG_STATE),
        sender=openings.sender_of_answer,
    ),
    Route(
        "PUT",
        f"{TASK}/rounds/{{round}}/shares/{{holder}}",
        openings.put_share,
        "holder",
        "Release a share; idempotent",
        {201: Content(JSON, RoundStatus), 200: Content(JSON, RoundStatus)},
        Content(FRAME, text="Head: the Share's JWS. Body: one packed vector for each of its `vectors`, in order."),
        (*_FRAME, *_SIGNED, *_SECTIONS, p.WRONG_STATE, p.MANIFEST_MISMATCH, p.NOT_CERTIFIED, p.WRONG_SHARE),
        sender=openings.sender_of_share,
    ),
    Route(
        "GET",
        f"{TASK}/board/{{phase}}",
        board.list_posts,
        "any",
        "The posts of one phase of the key ceremony",
        {200: Content(JSON, Board)},
    ),
    Route(
        "GET",
        f"{TASK}/board/{{phase}}/{{holder}}",
        board.get_post,
        "any",
        "The body of one post",
        {200: Content(BYTES)},
    ),
    Route(
        "PUT",
        f"{TASK}/board/{{phase}}/{{holder}}",
        board.put_post,
        "holder",
        "Post to the key ceremony; idempotent",
        {201: Content(JSON, BoardEntry), 200: Content(JSON, BoardEntry)},
        Content(FRAME, text="Head: the JWS of the phase's message. Body: its bytes, if it has any."),
        (*_FRAME, *_SIGNED, p.CEREMONY_CONFLICT),
        sender=board.sender_of_post,
    ),
)
