"""The page of all problem types, from the types themselves: `python -m docs.problems` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path

from he_protocol.errors import FAMILIES
from he_protocol.problems import PROBLEMS, URN, Retry

PAGE = Path(__file__).parent / "problems.md"
INTRODUCTION = f"""# Problems

Whatever is refused is refused as one of these types (RFC 9457).
The URN is `{URN}` and the slug.
A slug keeps its meaning for ever.
Beside `detail`, a problem may say what was `expected` and what was `got`, and it names its `family` and `retry`.
The same types are raised in Python (`he_protocol.errors`), and are the exit messages of the commands.

| `retry` | means | what programs do by themselves |
| --- | --- | --- |
{{retries}}

A resumable upload that meets {{ask-offset}} asks how far it is and goes on.
After {{begin-anew}} it begins again, once.

In Python each family is a class, and all of them are `ProblemError`: write `except Unavailable`.
"""

RETRY_ROWS: dict[Retry, tuple[str, str]] = {
    "never": (
        "the same bytes always meet it",
        "a client drops its encrypted update, a server the bytes of the upload",
    ),
    "same-request": (
        "the same request may pass later, and its sender has nothing to change",
        "both keep the bytes; for the family `unavailable` the transport asks again within its patience",
    ),
    "after-change": (
        "it may pass once something else has changed: a credential, a clock, a setting, a program",
        "a client keeps its encrypted update; a server drops the bytes of the upload, unless it failed itself",
    ),
}


def _introduction() -> str:
    rows = [_row([f"`{retry}`", *told]) for retry, told in RETRY_ROWS.items()]
    text = INTRODUCTION.replace("{retries}", "\n".join(rows))
    for step in ("ask-offset", "begin-anew"):
        slugs = [f"`{problem.slug}`" for problem in PROBLEMS.values() if problem.upload == step]
        text = text.replace(f"{{{step}}}", f"{', '.join(slugs[:-1])} or {slugs[-1]}")
    return text


def page(answered: Mapping[str, str] | None = None) -> str:
    """The page. `answered`: the operations that may answer a slug, for a column more."""
    out = [_introduction()]
    for family, kind in FAMILIES.items():
        out += [f"## `{family}`: `{kind.__name__}`", "", getdoc(kind) or "", ""]
        titles = ["slug", "status", "what it says", "retry", "what to do", *(["answered by"] if answered else [])]
        out += [_row(titles), _row(["---", "---:", *["---"] * (len(titles) - 2)])]
        for problem in PROBLEMS.values():
            if problem.family == family:
                name = f"<span id='{problem.slug}'></span>`{problem.slug}`"
                cells = [name, str(problem.status), problem.title, f"`{problem.retry}`", problem.what_to_do]
                if answered:
                    cells.append(answered.get(problem.slug, "no route by itself"))
                out.append(_row(cells))
        out.append("")
    return "\n".join(out)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
