"""What a request means, whatever a proxy made of it on the way."""

from __future__ import annotations

from collections.abc import Sequence


def effective_method(method: str, overrides: Sequence[str]) -> str:
    """The method that is meant: of a POST what its X-HTTP-Method-Override fields say, if there are any.

    Whatever a method decides goes by this one, the request's proof too.

    >>> effective_method("POST", ["PUT"]), effective_method("POST", []), effective_method("GET", ["PUT"])
    ('PUT', 'POST', 'GET')
    """
    return ", ".join(overrides) if method == "POST" and overrides else method


def has_model(if_none_match: str, sha256: str) -> bool:
    """Whether an If-None-Match field names the model with this digest, in hex.

    Wherever in the field the digest stands: proxies weaken tags (`W/"..."`), lengthen them (`"...-gzip"`) and quote
    them anew. At worst somebody is told that he has what he says that he has.

    >>> has_model('W/"abc-gzip", "x"', "abc"), has_model("*", "abc"), has_model('"x"', "abc")
    (True, True, False)
    """
    return if_none_match.strip() == "*" or sha256 in if_none_match
