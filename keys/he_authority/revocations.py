"""The authority's revocation lists. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from he_authority.enrollment import SECONDS_PER_DAY
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, public_from_jwk, verify
from he_protocol.identity.revocation import Revocations, key_digest
from he_protocol.messages import REVOKED_LIMIT, Credential, RevocationList
from he_protocol.problems import TOO_LARGE


def revoke(authority: SigningKey, credentials: Sequence[str], previous: str | None, *, now: float, days: float) -> str:
    """The revocation list after `previous` (the first: None), with the keys of these credentials added.

    Without credentials it says that nothing has changed: every list is valid for `days` only. Raises
    `bad-signature` for what is not this authority's, and `too-large` for more than `REVOKED_LIMIT` keys.
    """
    last = Revocations() if previous is None else Revocations.read(previous, authority.public)
    keys = set(last.keys)
    for credential in credentials:
        claims = verify(credential, Credential, authority.public)
        keys.add(key_digest(public_from_jwk(claims.cnf.jwk.x)))
    if len(keys) > REVOKED_LIMIT:
        raise ProblemError(TOO_LARGE, "the revocation list", expected=f"at most {REVOKED_LIMIT} keys", got=len(keys))
    valid_until = int(now + days * SECONDS_PER_DAY)
    return authority.sign(RevocationList(last.number + 1, int(now), valid_until, tuple(sorted(keys))))
