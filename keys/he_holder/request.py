"""What a key holder checks: one manifest, what came with it, and what the holder's ledger knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from he_protocol.identity.jws import payload_hash, read_unverified
from he_protocol.identity.revocation import Revocations
from he_protocol.messages import Manifest, SignedUpdate, UpdateHeader
from he_protocol.task import Task


@dataclass(frozen=True)
class LedgerView:
    """What the holder's ledger knows about one manifest.

    voted: the hash of the manifest that it voted for under this opening number, or None. opened_before: those of the
    manifest's update ids that stand in votes for *other* manifests. repeated: the same for (client, base version).
    model_version, formed: the newest of votes with lower numbers. destroyed: this holder has destroyed its keys of the
    epoch. revocations: the newest list that it has seen.
    """

    voted: bytes | None = None
    opened_before: frozenset[bytes] = frozenset()
    repeated: frozenset[tuple[str, int]] = frozenset()
    model_version: int = 0
    formed: int = 0
    destroyed: bool = False
    revocations: Revocations = field(default_factory=Revocations)


@dataclass(frozen=True)
class OpeningRequest:
    """One manifest that a server asks to open, and all that is needed to judge it. `now` in Unix seconds.

    require_revocations: this holder opens nothing before it has seen a revocation list. votes: of holders, as the
    server serves them; only a release needs them.
    """

    task: Task
    authority: bytes
    manifest_token: str
    updates: tuple[SignedUpdate, ...]
    ledger_view: LedgerView
    min_clients_floor: int
    now: float
    require_revocations: bool = False
    votes: tuple[str, ...] = ()

    @cached_property
    def manifest(self) -> Manifest:
        """Strictly parsed; `manifest_signed` checks the signature."""
        return read_unverified(self.manifest_token, Manifest)

    @cached_property
    def manifest_hash(self) -> bytes:
        return payload_hash(self.manifest_token)

    @cached_property
    def headers(self) -> tuple[UpdateHeader, ...]:
        """Strictly parsed; `headers_signed` checks the signatures."""
        return tuple(_header(update.header) for update in self.updates)


@lru_cache(maxsize=1 << 14)
def _header(token: str) -> UpdateHeader:
    """Read once, although every stage of a round makes a request of its own."""
    return read_unverified(token, UpdateHeader)
