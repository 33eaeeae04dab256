"""OpenAPI 3.1, made from the table of routes and the documents' types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

import msgspec

from he_protocol import problems as p
from he_protocol.errors import ProblemDocument
from he_protocol.headers import METHOD_OVERRIDE, OVERRIDABLE
from he_protocol.messages import SignedUpdate
from he_protocol.problems import ProblemType
from he_server.http.routes import JSON, Content, Route

Json: TypeAlias = dict[str, Any]
_OVERRIDE = (
    f"Where a network lets a method not through, a POST may name it in {METHOD_OVERRIDE}, at every path that has "
    f"one of {', '.join(sorted(OVERRIDABLE))}. Such a request is what it names, and its proof is for that method."
)
PROBLEM = "application/problem+json"
_ALWAYS = (
    p.NOT_FOUND,
    p.TOO_LARGE,
    p.UNKNOWN_CODING,
    p.EXPECTATION_FAILED,
    p.OVERLOADED,
    p.TOO_MANY_CONNECTIONS,
    p.INTERNAL,
    p.DATABASE_UNAVAILABLE,
    p.SHUTTING_DOWN,
)
_CREDENTIAL = (
    p.UNKNOWN_PROTOCOL,
    p.MALFORMED,
    p.UNAUTHENTICATED,
    p.BAD_SIGNATURE,
    p.FOREIGN_CREDENTIAL,
    p.EXPIRED_CREDENTIAL,
    p.REVOKED_KEY,
    p.REPLAYED_REQUEST,
)
_PARAMETERS = {
    "task": "the task's hash, 64 hex digits",
    "update": "the update's id, 32 hex digits",
    "upload": "the upload's id, 32 hex digits, as the answer that began it named it",
    "section": "name of a section of a body",
    "round": "the round's number",
    "holder": "a key holder's name",
    "phase": "a phase of the ceremony of the task's scheme; of `ckks`: contribution, commitment, reveal, confirmation",
}


def document(routes: Sequence[Route], version: str) -> bytes:
    """The whole document as JSON bytes."""
    kinds: list[Any] = [ProblemDocument, SignedUpdate]
    kinds += [
        content.kind for route in routes for content in route.answers.values() if content and content.media == JSON
    ]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    named = {_key(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, named)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "HushSum server", "version": version, "description": _OVERRIDE},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "credential": {"type": "apiKey", "in": "header", "name": "Authorization"},
                    "proof": {"type": "apiKey", "in": "header", "name": "DPoP"},
                },
            },
        }
    )


def problems_of(route: Route) -> tuple[ProblemType, ...]:
    """Every problem that a route may answer, by status and name."""
    found = {*route.problems, *_ALWAYS}
    if route.access != "public":
        found |= {*_CREDENTIAL}
    if route.takes is not None:
        found |= {p.REQUEST_TIMEOUT}
    if route.access in {"client", "holder"}:
        found |= {p.WRONG_ROLE, p.NOT_ADDRESSED}
    return tuple(sorted(found, key=lambda problem: (problem.status, problem.slug)))


def _operation(route: Route, named: dict[str, Json]) -> Json:
    responses: dict[str, Json] = {}
    for status, content in route.answers.items():
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
        if content is not None:
            responses[str(status)]["content"] = _content(content, named)
    for problem in problems_of(route):
        response = responses.setdefault(
            str(problem.status), {"description": "", "content": {PROBLEM: {"schema": named[_key(ProblemDocument)]}}}
        )
        response["description"] += f"{'; ' if response['description'] else ''}{problem.slug}: {problem.title}"
        response.setdefault("x-problems", []).append(_problem(problem))
    operation: Json = {
        "operationId": getattr(route.handler, "__name__", route.path),
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": responses,
    }
    if route.takes is not None:
        operation["requestBody"] = {
            "required": True,
            "description": route.takes.text,
            "content": _content(route.takes, named),
        }
    if route.access != "public":
        operation["security"] = [{"credential": [], "proof": []}]
        operation["x-role"] = route.access
    return operation


def _problem(problem: ProblemType) -> Json:
    """What a program needs to know of a problem beside its title."""
    return {
        "type": problem.urn,
        "family": problem.family,
        "retry": problem.retry,
        "what-to-do": problem.what_to_do,
    }


def _parameters(route: Route) -> list[Json]:
    in_path = [
        {"name": name, "in": "path", "required": True, "description": _PARAMETERS[name], "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    in_header = [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in route.headers.items()
    ]
    return in_path + in_query + in_header


def _content(content: Content, named: dict[str, Json]) -> Json:
    if content.media == JSON:
        return {content.media: {"schema": named[_key(content.kind)]}}
    if content.kind is str:
        return {content.media: {"schema": {"type": "string"}}}
    return {content.media: {}}


def _key(kind: object) -> str:
    return str(kind)
