"""Structured logs on standard error: one JSON object, or one readable line, per event. No secrets, no bodies."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from aiohttp.http import HttpProcessingError

from he_protocol.errors import printable

SHOWN = 200
"""Characters of what a stranger made the HTTP library say."""


def configure(form: Literal["json", "console"], level: str) -> None:
    """Set up structlog for the whole process."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        # By default it would show the values of all variables, keys among them.
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    parties = logging.getLogger("he-party")
    parties.propagate = False
    parties.handlers = [_Warnings()]


def http_log() -> logging.Logger:
    """The HTTP library's logger: what never reached the application is one line of the log, and no traceback."""
    logger = logging.getLogger("he_server.http")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.handlers = [_OneLine()]
    return logger


class _Warnings(logging.Handler):
    """Hands what other packages of ours warn of to structlog."""

    def handle(self, record: logging.LogRecord) -> bool:
        structlog.get_logger().warning(record.getMessage())
        return True


class _OneLine(logging.Handler):
    """Hands the library's records to structlog. Only a failure of our own has a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = printable(record.getMessage())[:SHOWN]
        if error is None or isinstance(error, HttpProcessingError):
            why = printable(str(error or "")).strip()[:SHOWN]
            structlog.get_logger().info("rejected before it was a request", said=said, why=why)
        else:
            structlog.get_logger().error("unexpected failure", said=said, exc_info=error)
