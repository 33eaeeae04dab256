"""A project file, and the kits that follow from it: one for each party, with an invitation of its own."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Self

import msgspec

from he_party.kit import Kit
from he_party.text import read_text, read_toml
from he_protocol.errors import ProblemError
from he_protocol.identity.invitations import NONCE_BYTES, Invitation
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Name, Role
from he_protocol.problems import BAD_PLAN


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part, and where the server is. tls_ca: a PEM file beside the project's."""

    task: Name
    url: str
    server: Name
    holders: tuple[Name, ...]
    clients: tuple[Name, ...] = ()
    tls_ca: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `bad-plan`, naming what is wrong."""
        try:
            project = msgspec.convert(read_toml(path, BAD_PLAN), cls)
        except msgspec.ValidationError as error:
            raise ProblemError(BAD_PLAN, f"{path}: {error}") from None
        if twice := [name for name, count in Counter(name for name, _ in project.parties).items() if count > 1]:
            raise ProblemError(BAD_PLAN, f"{path}: a name is one party's", got=", ".join(twice))
        return project

    @property
    def parties(self) -> list[tuple[str, Role]]:
        """Everybody's name and role."""
        holders: list[tuple[str, Role]] = [(name, "holder") for name in self.holders]
        return [(self.server, "server"), *holders, *((name, "client") for name in self.clients)]


def kits(project: Project, folder: Path, authority: SigningKey, until: int) -> list[Kit]:
    """One for each party, with an invitation for its name that ends at `until` (Unix seconds).

    folder: the project file's. Raises `bad-plan` for a certificate that is missing.
    """
    ca = read_text(folder / project.tls_ca, BAD_PLAN) + "\n" if project.tls_ca else ""

    def kit(name: str, role: Role) -> Kit:
        code = Invitation.issue(authority, role, until, secrets.token_bytes(NONCE_BYTES), name).code
        return Kit(role, name, authority.public, code, project.url, project.task, ca)

    return [kit(name, role) for name, role in project.parties]
