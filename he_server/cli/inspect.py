"""`he-server doctor` and `he-server audit`: look at a server from outside, changing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from he_party.console import OutputFormat
from he_protocol.errors import ProblemError
from he_protocol.messages import AuditHead
from he_protocol.problems import BAD_SETTINGS
from he_server.cli.options import Config, DatabaseUrl, DataDir

if TYPE_CHECKING:
    from he_server.cli.doctor import Finding
    from he_server.rules.audit_chain import Entry
    from he_server.settings import Settings

COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def doctor(
    config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None, form: OutputFormat = "text"
) -> None:
    """Check settings, keys, database, disk, rounds and audit log; exit code 1 when something is wrong."""
    import asyncio

    from he_server.cli.doctor import examine
    from he_server.settings import load_settings

    settings = load_settings(config, data_dir=data_dir, database_url=database_url)
    findings = asyncio.run(examine(settings))
    if form == "json":
        typer.echo(msgspec.json.encode(findings))
    else:
        _show_findings(findings)
    if any(finding.level == "wrong" for finding in findings):
        raise typer.Exit(1)


def audit(
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    verify_it: Annotated[
        bool, typer.Option("--verify", help="Check every link; exit code 2 if one is broken.")
    ] = False,
    pinned: Annotated[
        Path | None,
        typer.Option(help="With --verify: a head kept from an earlier day, as GET /v1/audit/head gave it."),
    ] = None,
    since: Annotated[str, typer.Option(help="Show entries from this ISO 8601 time on.")] = "",
    form: OutputFormat = "text",
) -> None:
    """Show the audit log: what happened to tasks and rounds, in hash-chained entries."""
    import asyncio

    from he_server.rules.audit_chain import verify_chain
    from he_server.settings import load_settings

    settings = load_settings(config, data_dir=data_dir, database_url=database_url)
    start = _time(since) if since else 0.0
    head = None if pinned is None else read_head(pinned, settings)
    entries = asyncio.run(_entries(settings))
    if verify_it or head is not None:
        verify_chain(entries, head)
    shown = [entry for entry in entries if entry.time >= start]
    if form == "json":
        typer.echo(msgspec.json.encode(shown))
    else:
        _show_entries(shown)


def read_head(path: Path, settings: Settings) -> AuditHead:
    """A head that this server signed, from a file with the answer or only its token.

    Raises `bad-settings` for a file that cannot be read, and what `verify` raises.
    """
    from he_protocol.documents import AuditStatus
    from he_protocol.identity.jws import verify

    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(BAD_SETTINGS, f"cannot read {path}: {error}") from None
    token = msgspec.json.decode(text, type=AuditStatus).head if text.startswith("{") else text
    return verify(token, AuditHead, settings.read_key().public)


async def _entries(settings: Settings) -> list[Entry]:
    from he_server.store import Store
    from he_server.store.engine import make_engine

    store = Store(make_engine(settings.database))
    try:
        return await store.audit.entries()
    finally:
        await store.close()


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ProblemError(BAD_SETTINGS, "--since", expected="2026-11-22T10:00:00+00:00", got=text[:80]) from None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def _show_findings(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "found", "what to do")
    for item in findings:
        table.add_row(item.check, f"[{COLOURS[item.level]}]{item.level}[/]", escape(item.found), escape(item.advice))
    Console().print(table)


def _show_entries(entries: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("seq", "time", "event", "task", "round", "detail", "hash")
    for entry in entries:
        when = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="seconds")
        numbers = (str(entry.round) if entry.round else "", escape(entry.detail), entry.hash[:16])
        table.add_row(str(entry.seq), when, entry.event, entry.task[:12], *numbers)
    Console().print(table)
