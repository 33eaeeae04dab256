"""The HTTP interface and the problems as pages, from the server's own OpenAPI document."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from docs.problems import page
from he_protocol.problems import URN

Json = Mapping[str, Any]
GROUPS = {
    "Tasks and models": ("/v1/tasks", "/v1/tasks/{task}", "/v1/tasks/{task}/model"),
    "Updates": ("/v1/tasks/{task}/updates",),
    "Resumable uploads": ("/v1/tasks/{task}/uploads", "/v1/uploads"),
    "Rounds": ("/v1/tasks/{task}/rounds", "/v1/tasks/{task}/events"),
    "Key holders": (
        "/v1/tasks/{task}/openings",
        "/v1/tasks/{task}/rounds/{round}/opening",
        "/v1/tasks/{task}/rounds/{round}/heads",
        "/v1/tasks/{task}/rounds/{round}/key-sections",
        "/v1/tasks/{task}/rounds/{round}/answers",
        "/v1/tasks/{task}/rounds/{round}/shares",
    ),
    "Key ceremony": ("/v1/tasks/{task}/board",),
    "Revocation and audit": ("/v1/revocations", "/v1/audit"),
    "Operation": ("/",),
}
"""Headings, and what the paths below them begin with: the longest beginning counts."""
JSON = "application/json"
FEW = 8
"""Of more routes than these only the number is told."""
INTRODUCTION = """# HTTP interface

What `he-server` answers, from its own [OpenAPI 3.1 document](openapi.json).
A running server has it under `/v1/openapi.json`.
Tests call every route by it.

Requests that need a credential carry `Authorization: DPoP <credential>` and `DPoP: <proof>`:
see the [protocol](protocol.md) and [ADR 7](adr/0007-request-proofs.md).
{override}
Errors are [problem documents](problems.md). Any route may answer {everywhere}; below, each has what comes beside these.
"""


def http_page(document: Json) -> str:
    """Every operation under its group, then the documents that travel."""
    grouped: dict[str, list[tuple[str, str, Json]]] = {title: [] for title in GROUPS}
    for method, path, operation in _operations(document):
        grouped[_group(path)].append((method, path, operation))
    common = _everywhere(document)
    out = [INTRODUCTION.replace("{everywhere}", _links(common)).replace("{override}", document["info"]["description"])]
    for title, operations in grouped.items():
        if operations:
            out.append(f"## {title}\n")
            out += [_operation(method, path, operation, common) for method, path, operation in operations]
    out.append("## Documents\n")
    schemas = document["components"]["schemas"]
    out += [_schema(name, schemas[name]) for name in sorted(schemas)]
    return "\n".join(out)


def problems_page(document: Json) -> str:
    """Every problem type, as `docs/problems.md` has it, and the operations that may answer it."""
    common = _everywhere(document)
    used: dict[str, list[str]] = {}
    for method, path, operation in _operations(document):
        for slug in _problems_of(operation):
            used.setdefault(slug, []).append(f"[{method.upper()} {path}](http.md#{_anchor(method, path)})")
    told = {slug: f"{len(where)} routes" if len(where) > FEW else ", ".join(where) for slug, where in used.items()}
    return page(told | dict.fromkeys(common, "every route"))


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Method, path and description of every operation."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def _problems_of(operation: Json) -> set[str]:
    return {slug for answer in operation["responses"].values() for slug in _slugs(answer)}


def _everywhere(document: Json) -> frozenset[str]:
    """The problems that every operation may answer."""
    return frozenset(set.intersection(*(_problems_of(operation) for _, _, operation in _operations(document))))


def _links(slugs: Iterable[str]) -> str:
    return " ".join(f"[`{slug}`](problems.md#{slug})" for slug in sorted(slugs))


def _group(path: str) -> str:
    best = max(
        ((len(start), title) for title, starts in GROUPS.items() for start in starts if _below(path, start)),
    )
    return best[1]


def _below(path: str, start: str) -> bool:
    return path == start or path.startswith(start if start.endswith("/") else f"{start}/")


def _anchor(method: str, path: str) -> str:
    return f"{method}{path}".replace("/", "-").replace("{", "").replace("}", "").replace(".", "-").lower()


def _operation(method: str, path: str, operation: Json, common: frozenset[str]) -> str:
    lines = [f"### `{method.upper()} {path}` {{ #{_anchor(method, path)} }}\n", f"{operation.get('summary', '')}.\n"]
    if access := _access(operation):
        lines.append(f"{access}\n")
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | |", "| --- | --- | --- |"]
        lines += [f"| `{p['name']}` | {p['in']} | {_cell(p.get('description', ''))} |" for p in parameters]
        lines.append("")
    if body := operation.get("requestBody"):
        for media, content in body["content"].items():
            about = body.get("description") or content.get("schema", {}).get("description", "")
            lines.append(f"Body: `{media}`. {about}\n")
    lines += ["| status | answer |", "| ---: | --- |"]
    told = {status: _answer(answer, common) for status, answer in sorted(operation["responses"].items())}
    lines += [f"| {status} | {answer} |" for status, answer in told.items() if answer]
    return "\n".join([*lines, ""])


def _access(operation: Json) -> str:
    role = operation.get("x-role")
    if role in {"client", "holder", "server"}:
        return f"Needs a credential of role {role}."
    return "Needs a credential of any role." if operation.get("security") else "Open to everybody."


def _answer(answer: Json, common: frozenset[str]) -> str:
    """What comes with a status; nothing where it is but a problem of every route."""
    if slugs := _slugs(answer):
        return _links(set(slugs) - common)
    content = answer.get("content", {})
    told = [
        _type(body["schema"]) if media == JSON and "schema" in body else f"`{media}`" for media, body in content.items()
    ]
    return ", ".join(told) or "no body"


def _slugs(answer: Json) -> list[str]:
    """The problems that an answer may be."""
    return [problem["type"].removeprefix(URN) for problem in answer.get("x-problems", ())]


def _schema(name: str, schema: Json) -> str:
    lines = [f"### {name} {{ #schema-{name.lower()} }}\n"]
    if description := schema.get("description"):
        lines.append(f"{inspect.cleandoc(description)}\n")
    if properties := schema.get("properties"):
        required = set(schema.get("required", ()))
        lines += ["| member | type | |", "| --- | --- | --- |"]
        for member, kind in properties.items():
            default = "" if member in required else f"default `{kind.get('default')!r}`" if "default" in kind else ""
            lines.append(f"| `{member}` | {_type(kind)} | {_cell(kind.get('description', ''))} {default} |")
        lines.append("")
    return "\n".join(lines)


def _type(kind: Json) -> str:
    """A JSON Schema in a few words, with links to documents."""
    if ref := kind.get("$ref"):
        name = ref.rsplit("/", 1)[-1]
        return f"[{name}](#schema-{name.lower()})"
    if choices := kind.get("anyOf") or kind.get("oneOf"):
        return " or ".join(_type(choice) for choice in choices)
    if "enum" in kind:
        return " ".join(f"`{value!r}`".replace("'", '"') for value in kind["enum"])
    if kind.get("type") == "array":
        return f"array of {_type(kind['items'])}" if kind.get("items") else "array"
    if kind.get("type") == "object" and isinstance(kind.get("additionalProperties"), dict):
        return f"object of {_type(kind['additionalProperties'])}"
    return str(kind.get("type", "any"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
