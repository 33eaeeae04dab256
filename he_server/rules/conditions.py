"""Conditional requests: what somebody has who asks again."""

from __future__ import annotations


def has_model(if_none_match: str, sha256: str) -> bool:
    """Whether an If-None-Match field names the model with this digest, in hex.

    Wherever in the field the digest stands: proxies weaken tags (`W/"..."`), lengthen them (`"...-gzip"`) and quote
    them anew. At worst somebody is told that he has what he says that he has.

    >>> has_model('W/"abc-gzip", "x"', "abc"), has_model("*", "abc"), has_model('"x"', "abc")
    (True, True, False)
    """
    return if_none_match.strip() == "*" or sha256 in if_none_match
