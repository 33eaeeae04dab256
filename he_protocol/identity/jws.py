"""JWS (RFC 7515) with Ed25519 (RFC 9864) over the exact bytes of a JSON message.

The protected header's `typ` names the kind of message, so that one kind can never be taken for
another, whoever signed it, and the protocol's version (a parameter of the media type, RFC 7515
section 4.1.9), so that fields are never read with the meaning of another version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from he_protocol.errors import ProblemError
from he_protocol.messages import MESSAGE_LIMIT, Message, from_json, to_json
from he_protocol.problems import BAD_SIGNATURE, MALFORMED, TOO_LARGE
from he_protocol.version import PROTOCOL, unknown

ALGORITHM = "Ed25519"
CURVE_PRIME = 2**255 - 19
"""Of the field under Ed25519 and X25519."""
_D = -121665 * pow(121666, -1, CURVE_PRIME) % CURVE_PRIME
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER_Y = frozenset({0, 1, CURVE_PRIME - 1, _ORDER_8_Y, CURVE_PRIME - _ORDER_8_Y})
"""y of the eight points whose order divides 8 (RFC 8032 section 5.1): signing for them needs no private key."""
TOKEN_LIMIT = MESSAGE_LIMIT * 4 // 3 + 1024
_VERSION = f"v={PROTOCOL}"

M = TypeVar("M", bound=Message)


class _Registry(jws.JWSRegistry):
    max_payload_length = TOKEN_LIMIT


_REGISTRY = _Registry(algorithms=[ALGORITHM])


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key pair; the private half never shows in `repr`."""

    public: bytes
    private: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh pair from the operating system's CSPRNG."""
        pair = OKPKey.generate_key("Ed25519").as_dict(private=True)
        return cls(urlsafe_b64decode(str(pair["x"]).encode()), urlsafe_b64decode(str(pair["d"]).encode()))

    def sign(self, message: Message) -> str:
        """Compact JWS of a message."""
        key = _imported(self.public, self.private)
        header = {"alg": ALGORITHM, "typ": _typ(type(message))}
        return jws.serialize_compact(header, to_json(message), key, registry=_REGISTRY)


def check_public(public: bytes, what: str = "an Ed25519 key") -> bytes:
    """A public key of 32 bytes, once it is one that only its owner can sign for.

    Raises `malformed` for what is not the one encoding of a point of the curve (RFC 8032 section 5.1.3), and for a
    point of small order: under it a signature made without a key verifies for one message in eight, or for all.
    """
    _check_point(public, what)
    return public


@lru_cache(maxsize=4096)
def _check_point(public: bytes, what: str) -> None:
    """See `check_public`: the same keys come again and again, and this costs as much as a signature."""
    y = int.from_bytes(public, "little") & (1 << 255) - 1
    sign = public[31] >> 7 if len(public) == 32 else 0
    if len(public) != 32 or y >= CURVE_PRIME or not _on_curve(y, sign):
        raise ProblemError(MALFORMED, what, expected="32 bytes that encode a point of Ed25519", got=public[:40].hex())
    if y in _LOW_ORDER_Y:
        raise ProblemError(MALFORMED, what, expected="a point of large order", got=public.hex())


def _on_curve(y: int, sign: int) -> bool:
    """Whether x^2 = (y^2 - 1) / (d y^2 + 1) has a root of this sign; 0 has only one."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, CURVE_PRIME) % CURVE_PRIME
    return sign == 0 if square == 0 else pow(square, (CURVE_PRIME - 1) // 2, CURVE_PRIME) == 1


@lru_cache(maxsize=4096)
def _imported(public: bytes, private: bytes = b"") -> OKPKey:
    """The library's form of a key: making it costs as much as a signature."""
    check_public(public)
    return OKPKey.import_key({**_jwk(public), **({"d": _text(private)} if private else {})})


def verify(token: str, kind: type[M], public: bytes) -> M:
    """The message inside a JWS, once its type and signature are checked against `public` (32 bytes).

    Raises `unknown-protocol`, `malformed` (also for a key that `check_public` refuses), `unknown-field`,
    `trailing-bytes`, `too-large` or `bad-signature`.
    """
    parsed = _split(token)
    wanted = {"alg": ALGORITHM, "typ": _typ(kind)}
    if parsed.headers() != wanted:
        raise ProblemError(
            BAD_SIGNATURE, "the protected header is not of this kind", expected=wanted, got=parsed.headers()
        )
    if not _signed(parsed, public):
        raise ProblemError(BAD_SIGNATURE, f"the signature on this {kind.__name__} does not verify")
    return from_json(parsed.payload, kind)


def read_unverified(token: str, kind: type[M]) -> M:
    """The message inside a JWS, strictly parsed, its signature *not* checked."""
    return from_json(_split(token).payload, kind)


def message_kind(token: str) -> str:
    """The lower-case name of the message that a JWS says it is; its signature is *not* checked."""
    typ = str(_split(token).headers().get("typ", ""))
    return typ.removeprefix("hushsum-").partition("+")[0]


def payload_hash(token: str) -> bytes:
    """SHA-256 of the exact bytes that a JWS signs."""
    return hashlib.sha256(_split(token).payload).digest()


def token_hash(token: str) -> bytes:
    """SHA-256 of a whole compact JWS, signature included."""
    return hashlib.sha256(token.encode()).digest()


def public_from_jwk(x: str) -> bytes:
    """The 32 bytes of an RFC 8037 `x`. Raises `malformed` for another length, and what `check_public` raises."""
    try:
        raw = urlsafe_b64decode(x.encode())
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ProblemError(MALFORMED, "a JWK's x is not 32 bytes of base64url")
    return check_public(raw, "a JWK's x")


def jwk_x(public: bytes) -> str:
    """RFC 8037 `x` of a public key."""
    return _text(public)


def fingerprint(public: bytes) -> str:
    """A short name for a public key: base64url of its SHA-256."""
    return _text(hashlib.sha256(public).digest())


def _split(token: str) -> jws.CompactSignature:
    if len(token) > TOKEN_LIMIT:
        raise ProblemError(TOO_LARGE, "a signed message is too long", expected=f"at most {TOKEN_LIMIT}", got=len(token))
    try:
        parsed = jws.extract_compact(token.encode(), registry=_REGISTRY)
    except (JoseError, ValueError):
        raise ProblemError(MALFORMED, "not a compact JWS (RFC 7515 section 7.1)") from None
    _check_version(parsed.headers().get("typ"))
    return parsed


def _check_version(typ: object) -> None:
    """Raises `unknown-protocol`, also where there is no version at all."""
    kind, _, version = typ.partition(";") if isinstance(typ, str) else ("", "", "")
    if version != _VERSION:
        raise unknown("a signed message", f"{kind[:40]};{version[:40]}")


def _signed(parsed: jws.CompactSignature, public: bytes) -> bool:
    try:
        return jws.validate_compact(parsed, _imported(public), registry=_REGISTRY)
    except (JoseError, ValueError):  # no such algorithm, no such key
        return False


def _typ(kind: type[Message]) -> str:
    return f"hushsum-{kind.__name__.lower()}+jws;{_VERSION}"


def _jwk(public: bytes) -> dict[str, str | list[str]]:
    return {"kty": "OKP", "crv": "Ed25519", "x": _text(public)}


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode()
