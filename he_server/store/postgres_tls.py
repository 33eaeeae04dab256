"""TLS to PostgreSQL, by the parameters that libpq has for it.

https://www.postgresql.org/docs/current/libpq-ssl.html
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

TLS = ("sslmode", "ssl", "sslrootcert", "sslcert", "sslkey", "sslpassword", "channel_binding", "gssencmode")
MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_WORDS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_UNSURE = MODES[:3]


def check_one_of(name: str, text: str, known: tuple[str, ...]) -> str:
    """The value of a parameter. Raises `bad-settings` unless it is one of those."""
    if text not in known:
        raise ProblemError(BAD_SETTINGS, f"database_url: {name}", expected=f"one of {', '.join(known)}", got=text)
    return text


def tls(given: Mapping[str, str]) -> dict[str, object]:
    """asyncpg's `ssl` for the parameters of a URL. Raises `bad-settings`."""
    mode, binding = _mode(given), given.get("channel_binding", "prefer")
    check_one_of("channel_binding", binding, ("disable", "prefer", "require"))
    check_one_of("gssencmode", given.get("gssencmode", "prefer"), ("disable", "prefer"))
    files = [key for key in ("sslrootcert", "sslcert", "sslkey") if given.get(key)]
    if binding == "require":
        # The driver binds no channel. What that is for, that nobody stands between, the certificate shows as well.
        files, mode = ["channel_binding=require", *files], "verify-full" if mode not in _UNSURE else mode
    if mode in _UNSURE and files:
        raise ProblemError(BAD_SETTINGS, f"database_url: {files[0]} asks for TLS", expected="another sslmode", got=mode)
    if not mode:
        return {}
    if not files and mode not in {"verify-ca", "verify-full"}:
        return {"ssl": mode}  # asyncpg knows these by libpq's names
    return {"ssl": _context(mode, given)}


def _mode(given: Mapping[str, str]) -> str:
    """What was asked for, "" for nothing: asyncpg then prefers TLS."""
    if "sslmode" in given and "ssl" in given:
        raise ProblemError(BAD_SETTINGS, "database_url: sslmode and ssl say the same: give one of them")
    text = given.get("sslmode", given.get("ssl"))
    if text is not None:
        return check_one_of("sslmode", _WORDS.get(text.lower(), text.lower()), MODES)
    if given.get("sslrootcert") or given.get("sslcert") or given.get("channel_binding") == "require":
        return "verify-full"
    return ""


def _context(mode: str, given: Mapping[str, str]) -> ssl.SSLContext:
    """`require` with a root certificate verifies the chain, as in libpq; without one the chain is not looked at."""
    root = _root(given)
    try:
        context = ssl.create_default_context(cafile=root)
        context.check_hostname = mode == "verify-full"
        if mode == "require" and not given.get("sslrootcert"):
            context.verify_mode = ssl.CERT_NONE
        if certificate := given.get("sslcert"):
            context.load_cert_chain(certificate, given.get("sslkey") or None, given.get("sslpassword") or "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ProblemError(BAD_SETTINGS, f"database_url: TLS certificate or key: {error}") from None
    return context


def _root(given: Mapping[str, str]) -> str | None:
    """The file of root certificates; None for those that the system trusts."""
    named = given.get("sslrootcert") or os.environ.get("PGSSLROOTCERT", "")
    usual = Path.home() / ".postgresql" / "root.crt"
    if named:
        return None if named == "system" else named
    return os.fspath(usual) if usual.is_file() else None
