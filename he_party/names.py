"""Names as people write them, and the safe ones that travel in messages, addresses and file names."""

from __future__ import annotations

import re
import unicodedata

from msgspec import ValidationError, convert

from he_protocol.errors import ProblemError
from he_protocol.messages import Display, Name
from he_protocol.problems import BAD_SETTINGS, MALFORMED

_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_EDGES = "._-"


def safe_name(written: str) -> str:
    """The name that a party gets who writes its own like this; one that is safe already stays.

    Raises `bad-settings` where nothing is left, or too much.

    >>> safe_name("Klinik München"), safe_name("phone-1")
    ('klinik-munchen', 'phone-1')
    """
    try:
        return convert(written, Name)
    except ValidationError:
        from anyascii import anyascii  # brings the alphabets of the world; a safe name needs none

    try:
        check_display(written)
        return convert(_UNSAFE.sub("-", anyascii(written).lower()).strip(_EDGES), Name)
    except (ProblemError, ValidationError) as error:
        reason = error.detail if isinstance(error, ProblemError) else str(error)
        raise ProblemError(BAD_SETTINGS, f"the name {written!r}: {reason}", expected="letters or digits") from None


def split_name(written: str) -> tuple[str, str]:
    """The safe name, and the one to show beside it: empty if it is the same. Raises what `safe_name` raises."""
    name = safe_name(written)
    return name, "" if name == written else written


def shown(name: str, display: str) -> str:
    """Both, for a line that a person reads.

    >>> shown("klinik-munchen", "Klinik München"), shown("phone-1", "")
    ("'klinik-munchen' (Klinik München)", "'phone-1'")
    """
    return f"{name!r} ({display})" if display else repr(name)


def check_display(written: str) -> None:
    """What a person reads is what is there: one line, no character that cannot be seen or turns the text around.

    Raises `malformed`.
    """
    try:
        convert(written, Display)
    except ValidationError as error:
        raise ProblemError(MALFORMED, f"display name: {error}", got=repr(written)) from None
    hidden = [c for c in written if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in {"Zl", "Zp"}]
    if hidden or written != unicodedata.normalize("NFC", written) or written != written.strip():
        raise ProblemError(
            MALFORMED,
            "display name",
            expected="one line of visible characters, in normal form C, without blanks around it",
            got=ascii(written),
        )
