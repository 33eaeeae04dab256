"""One-time invitations: the authority hands a code to whom it knows, and takes a request that was made with it.

A code is an id, which travels, and a key, which does not: the request carries a MAC under the key over everything that
it asks for, so that whoever passes it on cannot put another key in. An invitation may be for one name only. The
authority keeps no codes: from the id, the name and its own key follows the code's key.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self, get_args

from msgspec.structs import replace

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import EnrollRequest, Role, to_json
from he_protocol.problems import BAD_INVITATION

ROLES: tuple[Role, ...] = get_args(Role)
ID_BYTES, KEY_BYTES, NONCE_BYTES = 17, 16, 8
NAMED = 0x80
"""Added to the role's byte of an invitation that is for one name."""
_DOMAIN = b"hushsum/invitation/v1"


@dataclass(frozen=True)
class Invitation:
    """id: the role, when the invitation ends (Unix seconds), and a nonce; 1, 8 and 8 bytes."""

    id: bytes
    key: bytes = field(repr=False)

    @classmethod
    def issue(cls, authority: SigningKey, role: Role, until: int, nonce: bytes, name: str = "") -> Self:
        """The one with this nonce, for this name or for any. Only who has the authority's private key can make it."""
        public = bytes([ROLES.index(role) | (NAMED if name else 0)]) + until.to_bytes(8, "big") + nonce
        return cls(public, _key(authority, public, name))

    @classmethod
    def read(cls, code: str) -> Self:
        """A code as somebody typed it: in either case, with blanks or dashes. Raises `bad-invitation`."""
        letters = "".join(code.split()).replace("-", "").upper()
        try:
            data = base64.b32decode(letters + "=" * (-len(letters) % 8))
        except ValueError:
            data = b""
        if len(data) != ID_BYTES + KEY_BYTES:
            raise ProblemError(BAD_INVITATION, "this is no invitation code", expected="53 letters and digits")
        return cls(data[:ID_BYTES], data[ID_BYTES:])

    @property
    def code(self) -> str:
        """53 characters of base 32 (RFC 4648), in lower case."""
        return base64.b32encode(self.id + self.key).decode().rstrip("=").lower()

    def accept(self, request: EnrollRequest) -> EnrollRequest:
        """The request, made with this invitation."""
        asked = replace(request, invitation=self.id, invited=b"")
        return replace(asked, invited=_mac(self.key, asked))


def check_invitation(authority: SigningKey, request: EnrollRequest, used: Mapping[bytes, bytes], now: float) -> None:
    """The invitation of a request is the authority's, for this name and role, in its time, and nobody else has used it.

    used: by id, the public key that was enrolled with it. Raises `bad-invitation`.
    """
    known = request.invitation
    name = request.name if known[:1] >= bytes([NAMED]) else ""
    mac = _mac(_key(authority, known, name), replace(request, invited=b""))
    if len(known) != ID_BYTES or not hmac.compare_digest(mac, request.invited):
        raise ProblemError(BAD_INVITATION, f"{request.name!r} has none of this authority's, or the request was changed")
    if known[0] & ~NAMED != ROLES.index(request.role):
        raise ProblemError(BAD_INVITATION, f"that of {request.name!r} is for another role", got=request.role)
    if (until := int.from_bytes(known[1:9], "big")) <= now:
        raise ProblemError(BAD_INVITATION, f"that of {request.name!r} has ended", expected=f"before {until}")
    if used.get(known, request.key) != request.key:
        raise ProblemError(BAD_INVITATION, f"that of {request.name!r} was used by somebody else")


def _key(authority: SigningKey, public: bytes, name: str) -> bytes:
    return hmac.digest(authority.private, _DOMAIN + public + name.encode(), sha256)[:KEY_BYTES]


def _mac(key: bytes, request: EnrollRequest) -> bytes:
    return hmac.digest(key, to_json(request), sha256)
