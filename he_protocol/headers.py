"""Header fields of the API that are not HTTP's own. Those of tus are in `he_protocol.tus`."""

from __future__ import annotations

MODEL = "HushSum-Model"
"""With a model, or the word that it has not changed: the `PublishedModel`'s compact JWS.

An ETag would do, were it not that proxies weaken ETags, change them and leave them out.
"""
METHOD_OVERRIDE = "X-HTTP-Method-Override"
"""Of a POST: the method that is meant, as tus 1.0.0 has it, where a network lets that one not through."""
OVERRIDABLE = frozenset({"PUT", "PATCH", "HEAD", "DELETE"})
"""The methods that networks do not let through."""
