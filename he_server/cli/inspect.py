"""`he-server doctor` and `he-server audit`: look at a server from outside, changing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from he_party.console import OutputFormat, show_json, show_table
from he_protocol.errors import ProblemError
from he_protocol.messages import AuditHead
from he_protocol.problems import BAD_SETTINGS
from he_server.cli.options import Config, DatabaseUrl, DataDir

if TYPE_CHECKING:
    from he_party.tables import Cell
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
    settings.check_home()
    findings = asyncio.run(examine(settings))
    if form == "json":
        show_json(findings)
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
    settings.check_home()
    start = _time(since) if since else 0.0
    head = None if pinned is None else read_head(pinned, settings)
    entries = asyncio.run(_entries(settings))
    if verify_it or head is not None:
        seq, digest = verify_chain(entries, head)
        up_to = f", and goes on from the pinned one, {head.seq}" if head is not None else ""
        typer.echo(f"the audit log is whole: {seq} entries, head {digest.hex()}{up_to}", err=True)
    shown = [entry for entry in entries if entry.time >= start]
    if form == "json":
        show_json(shown)
    else:
        _show_entries(shown)


def read_head(path: Path, settings: Settings) -> AuditHead:
    """A head that this server signed, from a file with the answer or only its token.

    Raises `bad-settings` for a file that cannot be read, and what `verify` raises.
    """
    from he_party.text import read_text
    from he_protocol.documents import AuditStatus
    from he_protocol.identity.jws import verify

    text = read_text(path, BAD_SETTINGS)
    try:
        token = msgspec.json.decode(text, type=AuditStatus).head if text.startswith("{") else text
    except msgspec.MsgspecError as error:
        raise ProblemError(BAD_SETTINGS, f"{path}: {error}", expected="what GET /v1/audit/head answered") from None
    return verify(token, AuditHead, settings.read_key().public)


async def _entries(settings: Settings) -> list[Entry]:
    from he_server.cli.stored import open_store

    async with open_store(settings) as store:
        return await store.audit.entries()


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ProblemError(BAD_SETTINGS, "--since", expected="2026-11-22T10:00:00+00:00", got=text[:80]) from None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def _show_findings(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    rows: list[list[Cell]] = [
        [item.check, Text(item.level, COLOURS[item.level]), item.found, item.advice] for item in findings
    ]
    show_table(["check", "level", "found", "what to do"], rows)


def _show_entries(entries: Sequence[Entry]) -> None:
    rows = []
    for entry in entries:
        when = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="seconds")
        number = str(entry.round) if entry.round else ""
        rows.append([str(entry.seq), when, entry.event, entry.task[:12], number, entry.detail, entry.hash[:16]])
    show_table(["seq", "time", "event", "task", "round", "detail", "hash"], rows)
