"""`ProblemError`, and its families: what is raised when something is refused, here or by a peer.

One error travels through the whole system: pure checks raise it, the server renders it as
`application/problem+json`, the client turns that document back into the same error.

>>> from he_protocol.problems import OVERLOADED
>>> try:
...     raise ProblemError(OVERLOADED, "others wait already")
... except Unavailable as error:
...     print(error.problem.retry)
same-request
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self, get_args

import msgspec

from he_protocol.problems import PROBLEMS, RETRIES, UNEXPECTED_ANSWER, URN, Family, ProblemType

TEXT_LIMIT = 1000
"""Characters of any text in an error: it may quote what a stranger sent."""


def _one_of(values: tuple[str, ...]) -> msgspec.Meta:
    """For the schema only: a later release may have more of them, and its documents are still read."""
    return msgspec.Meta(extra_json_schema={"enum": list(values)})


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """RFC 9457 body. Unknown members are ignored on reading, as section 3.2 of the RFC asks.

    `family` and `retry` are for readers without the table of types; who knows the type goes by the table.
    """

    type: str
    title: str
    status: int
    detail: str
    expected: str = ""
    got: str = ""
    family: Annotated[str, _one_of(get_args(Family))] = ""
    retry: Annotated[str, _one_of(RETRIES)] = ""


def printable(text: str) -> str:
    """Text of a peer's choosing for a terminal or a log: escape sequences, line breaks and bidirectional
    overrides are shown instead of obeyed (CWE-150).

    >>> printable("ok\\x1b[2J")
    'ok\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ProblemError(Exception):
    """Input was refused; nothing was changed.

    Made of a problem type, it is of the class of the type's family, so that callers can catch a family.
    `expected` and `got` never hold secret bytes. Texts are cut to `TEXT_LIMIT`, and lone surrogates replaced.
    """

    def __new__(cls, problem: ProblemType, *_args: object, **_named: object) -> Self:
        family = FAMILIES[problem.family]
        if not issubclass(family, cls):
            raise TypeError(f"{problem.slug} is {problem.family}, not {cls.__name__}")
        return super().__new__(family)

    def __init__(self, problem: ProblemType, detail: str, *, expected: object = "", got: object = "") -> None:
        self.problem = problem
        self.detail = _short(detail)
        self.expected = _short(expected)
        self.got = _short(got)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Callable[[str, str, str, str], ProblemError], tuple[str, str, str, str]]:
        """So that an error comes back whole from a worker process."""
        return _restore, (self.problem.slug, self.detail, self.expected, self.got)

    def __str__(self) -> str:
        text = f"{self.problem.title}: {self.detail}"
        known = [f"{word} {what}" for word, what in (("expected", self.expected), ("got", self.got)) if what]
        if known:
            text += f" ({', '.join(known)})"
        return printable(f"{text} [{self.problem.slug}]")

    def document(self) -> bytes:
        """The error as `application/problem+json`."""
        problem = self.problem
        return msgspec.json.encode(
            ProblemDocument(
                problem.urn,
                problem.title,
                problem.status,
                self.detail,
                self.expected,
                self.got,
                problem.family,
                problem.retry,
            )
        )

    @staticmethod
    def from_document(body: bytes, status: int) -> ProblemError:
        """Read a problem document; anything else becomes `unexpected-answer`."""
        try:
            doc = msgspec.json.decode(body, type=ProblemDocument)
            problem = PROBLEMS[doc.type.removeprefix(URN)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
            detail = "something between answered, or the peer is no HushSum server"
            return ProblemError(UNEXPECTED_ANSWER, detail, got=f"HTTP {status}")
        return ProblemError(problem, doc.detail, expected=doc.expected, got=doc.got)


class InvalidMessage(ProblemError):
    """What was sent is not a message of the protocol, or not a right one."""


class Incompatible(ProblemError):
    """The parties run programs or parameters that do not go together."""


class NotAuthorised(ProblemError):
    """Who speaks has not shown that they may."""


class TaskRefused(ProblemError):
    """It belongs to another task than the one that is meant, or the task is nothing to take part in, or no longer."""


class Conflict(ProblemError):
    """It does not fit what stands, what was done before, or what a rule protects."""


class Unavailable(ProblemError):
    """Somebody could not answer now; nothing is wrong with what was asked."""


class BadSetup(ProblemError):
    """A plan, a setting or a file of our own cannot be used."""


FAMILIES: dict[Family, type[ProblemError]] = {
    "invalid-message": InvalidMessage,
    "incompatible": Incompatible,
    "not-authorised": NotAuthorised,
    "task": TaskRefused,
    "conflict": Conflict,
    "unavailable": Unavailable,
    "setup": BadSetup,
}


def _short(value: object) -> str:
    text = str(value).encode(errors="replace").decode()
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


def _restore(slug: str, detail: str, expected: str, got: str) -> ProblemError:
    return ProblemError(PROBLEMS[slug], detail, expected=expected, got=got)
