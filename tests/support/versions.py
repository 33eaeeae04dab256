"""Messages and frames as programs of other protocol versions make them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.util import urlsafe_b64encode

from he_protocol.frames import MAGIC
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Message, to_json

OTHERS = ("", ";v=1", ";v=3")
"""What follows the kind in `typ`: as before there were versions, an older one, a newer one."""
MAGICS = (b"", b"HSF\x01", b"HSF\x03")
"""The same of frames."""


@dataclass(frozen=True)
class OtherVersion(SigningKey):
    """The same key, in a program of another version."""

    version: str = ""

    @classmethod
    def of(cls, key: SigningKey, version: str) -> OtherVersion:
        return cls(key.public, key.private, version)

    def sign(self, message: Message) -> str:
        header = {"alg": "Ed25519", "typ": f"hushsum-{type(message).__name__.lower()}+jws{self.version}"}
        text = b".".join(urlsafe_b64encode(part) for part in (json.dumps(header).encode(), to_json(message)))
        signature = Ed25519PrivateKey.from_private_bytes(self.private).sign(text)
        return b".".join((text, urlsafe_b64encode(signature))).decode()


def reframed(frame: bytes, magic: bytes) -> bytes:
    """A frame of this version under another magic."""
    return magic + frame.removeprefix(MAGIC)
