"""What a request's path names, and that it has no body where none is taken."""

from __future__ import annotations

from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND, TOO_LARGE
from he_protocol.task import Task
from he_server.services.task_cache import TaskCache


def hex_id(text: str, size: int, what: str) -> bytes:
    """An id of `size` bytes from its lower-case hex. Raises `not-found` for anything else."""
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        raise ProblemError(NOT_FOUND, f"no such {what}", expected=f"{2 * size} lower-case hex digits", got=text[:80])
    return bytes.fromhex(text)


def check_empty(request: web.Request) -> None:
    """Raises `too-large` when a request has a body and its route takes none."""
    if request.body_exists:
        raise ProblemError(TOO_LARGE, "the body", expected="none", got=request.content_length or "chunks")


def round_number(request: web.Request) -> int:
    """The round that the path names. Raises `not-found`."""
    text = request.match_info["round"]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ProblemError(NOT_FOUND, "no such round", got=text[:80])
    return int(text)


async def task_of(tasks: TaskCache, request: web.Request) -> Task:
    """The task that the path names. Raises `not-found`."""
    return await tasks.get(hex_id(request.match_info["task"], 32, "task").hex())
