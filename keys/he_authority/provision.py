"""A project file, and the kits that follow from it: one for each party, with an invitation of its own."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Self

import msgspec

from he_party.kit import Kit
from he_party.names import split_name
from he_party.text import read_text, read_toml
from he_protocol.errors import ProblemError
from he_protocol.identity.invitations import NONCE_BYTES, Invitation
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Name, Role
from he_protocol.problems import BAD_PLAN


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part, by names as people write them, and where the server is.

    tls_ca: a PEM file beside the project's.
    """

    task: Name
    url: str
    server: str
    holders: tuple[str, ...]
    clients: tuple[str, ...] = ()
    tls_ca: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `bad-plan`, naming what is wrong."""
        try:
            project = msgspec.convert(read_toml(path, BAD_PLAN), cls)
        except msgspec.ValidationError as error:
            raise ProblemError(BAD_PLAN, f"{path}: {error}") from None
        try:
            names = Counter(name for name, _, _ in project.parties)
        except ProblemError as refusal:
            raise ProblemError(BAD_PLAN, f"{path}: {refusal.detail}", expected=refusal.expected) from None
        if twice := [name for name, count in names.items() if count > 1]:
            raise ProblemError(BAD_PLAN, f"{path}: a name is one party's", got=", ".join(twice))
        return project

    @property
    def parties(self) -> list[tuple[str, str, Role]]:
        """Everybody's name, the one to show beside it, and role. Raises `bad-settings` for what can be no name."""
        written: list[tuple[str, Role]] = [(self.server, "server")]
        written += [(name, "holder") for name in self.holders]
        written += [(name, "client") for name in self.clients]
        return [(*split_name(name), role) for name, role in written]


def kits(project: Project, folder: Path, authority: SigningKey, until: int) -> list[Kit]:
    """One for each party, with an invitation for its name that ends at `until` (Unix seconds).

    folder: the project file's. Raises `bad-plan` for a certificate that is missing.
    """
    ca = read_text(folder / project.tls_ca, BAD_PLAN) + "\n" if project.tls_ca else ""

    def kit(name: str, display: str, role: Role) -> Kit:
        code = Invitation.issue(authority, role, until, secrets.token_bytes(NONCE_BYTES), name).code
        return Kit(role, name, authority.public, code, project.url, project.task, ca, display)

    return [kit(*party) for party in project.parties]
