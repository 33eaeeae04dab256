"""Whom the authority has enrolled: a line for each credential, in a file beside its key.

A name is one party's. So a request under a name that is another's is refused, unless a person says that the party has
a new key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from he_authority.enrollment import SECONDS_PER_DAY, issue_credential
from he_party.lines import Lines
from he_protocol.errors import ProblemError
from he_protocol.identity.invitations import check_invitation
from he_protocol.identity.jws import SigningKey, fingerprint, read_unverified
from he_protocol.messages import Display, EnrollRequest, Key32, Message, Name, Role, Time, from_json, to_json
from he_protocol.problems import NAME_TAKEN

REGISTER_FILE = "enrolled.jsonl"


class Enrolled(Message, frozen=True):
    """One credential that was issued: whose, for which key, from when until when (Unix seconds).

    invitation: the id of the one that the request was made with, empty without.
    """

    name: Name
    role: Role
    key: Key32
    issued: Time
    until: Time
    invitation: bytes = b""
    display: Display = ""


def check_name(register: Iterable[Enrolled], asked: EnrollRequest, *, new_key: bool = False) -> None:
    """The name is nobody else's: nobody has it, or a party with this key and this role.

    new_key: the party has lost its key, as a person has made sure; its role stays. Raises `name-taken`.
    """
    known = [line for line in register if line.name == asked.name]
    if known and (known[-1].role != asked.role or not (new_key or known[-1].key == asked.key)):
        raise ProblemError(
            NAME_TAKEN,
            f"{asked.name!r} is enrolled already",
            expected=f"a {known[-1].role}, key {fingerprint(known[-1].key)}",
            got=f"a {asked.role}, key {fingerprint(asked.key)}",
        )


class Register:
    """The register in the authority's folder."""

    def __init__(self, directory: Path) -> None:
        self._lines = Lines(directory / REGISTER_FILE)

    def read(self) -> list[Enrolled]:
        """All lines, oldest first. Raises what `from_json` raises for a file that was changed."""
        return _entries(self._lines.read())

    def enroll(
        self,
        authority: SigningKey,
        request: str,
        role: Role,
        *,
        now: float,
        days: float,
        new_key: bool = False,
        invited: bool = False,
    ) -> tuple[Enrolled, str]:
        """The new line, which is durable by then, and the credential that it is of.

        invited: only with an invitation. One that a request brings is checked in any case. Raises `name-taken`,
        `bad-invitation`, or what `issue_credential` raises.
        """
        credential = issue_credential(authority, request, role, now=now, days=days)
        asked = read_unverified(request, EnrollRequest)  # which the line above verified
        with self._lines.adding() as (lines, add):
            before = _entries(lines)
            check_name(before, asked, new_key=new_key)
            if invited or asked.invitation:
                check_invitation(authority, asked, {line.invitation: line.key for line in before}, now)
            until = int(now + days * SECONDS_PER_DAY)
            line = Enrolled(asked.name, role, asked.key, int(now), until, asked.invitation, asked.display)
            add(to_json(line))
        return line, credential


def _entries(lines: Iterable[bytes]) -> list[Enrolled]:
    return [from_json(line, Enrolled) for line in lines]
