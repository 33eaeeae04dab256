"""A kit: what the authority hands to one party, so that a single command prepares it. Its key it makes itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from he_party.enrolling import AUTHORITY_FILE, KEY_FILE, create
from he_party.files import write_durably
from he_party.names import split_name
from he_party.text import read_text
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import jwk_x
from he_protocol.messages import Display, Key32, Message, Name, Role, from_json
from he_protocol.problems import BAD_SETTINGS

CA_FILE = "ca.pem"
KIT_LIMIT = 1 << 20


class Kit(Message, frozen=True):
    """`authority` is its public key, `server` the server's URL, `task` a name, `tls_ca` PEM text or empty.

    The invitation is the one secret in it: who has it first can enroll in this party's place.
    """

    role: Role
    name: Name
    authority: Key32
    invitation: str
    server: str
    task: Name
    tls_ca: str = ""
    display: Display = ""

    @classmethod
    def read(cls, path: Path, role: Role) -> Kit:
        """Raises `bad-settings` for what is no kit, or one of another role."""
        try:
            kit = from_json(read_text(path, BAD_SETTINGS).encode(), cls, limit=KIT_LIMIT)
        except ProblemError as refusal:
            raise ProblemError(BAD_SETTINGS, f"{path} is no kit: {refusal.detail}") from None
        if kit.role != role:
            raise ProblemError(BAD_SETTINGS, f"{path} is for another program", expected=role, got=kit.role)
        return kit


@dataclass(frozen=True)
class Given:
    """What `init` was given: a kit, or a name and perhaps an invitation.

    `display` is empty where it is the name itself, `server` and `task` are empty without a kit.
    """

    name: str
    display: str
    invitation: str
    kit: Kit | None = None

    @property
    def server(self) -> str:
        return self.kit.server if self.kit else ""

    @property
    def task(self) -> str:
        return self.kit.task if self.kit else ""

    def ca(self, directory: Path) -> Path | None:
        """Where `unpack` puts what vouches for the server's certificate."""
        return directory / CA_FILE if self.kit and self.kit.tls_ca else None

    def prepare(self, directory: Path, role: Role, now: float, passphrase: str, key_file: str = KEY_FILE) -> str:
        """Make the party's key in its folder, beside what the kit has for it; returns the enrollment request.

        Raises what `create` raises.
        """
        request = create(
            directory,
            self.name,
            role,
            now,
            passphrase=passphrase,
            invitation=self.invitation,
            display=self.display,
            key_file=key_file,
        )
        self.unpack(directory)
        return request

    def unpack(self, directory: Path) -> None:
        """Put what the kit has for the party's folder into it."""
        if self.kit is not None:
            (directory / AUTHORITY_FILE).write_text(jwk_x(self.kit.authority) + "\n")
            if self.kit.tls_ca:
                write_durably(directory / CA_FILE, self.kit.tls_ca.encode())


def given(kit: Path | None, role: Role, name: str | None, invitation: str) -> Given:
    """name: as its owner writes it. Raises `bad-settings` for a kit and a name, or neither, or what can be no name."""
    if kit is None:
        if name is None:
            raise ProblemError(BAD_SETTINGS, "whose is it?", expected="--name, or a kit of the authority")
        return Given(*split_name(name), invitation)
    if name is not None or invitation:
        raise ProblemError(BAD_SETTINGS, "a kit says name and invitation: leave these options out")
    found = Kit.read(kit, role)
    return Given(found.name, found.display, found.invitation, found)
