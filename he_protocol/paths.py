"""Where a server answers what: the one table of the API's paths."""

from __future__ import annotations

TASKS = "/v1/tasks"
REVOCATIONS = "/v1/revocations"
AUDIT_HEAD = "/v1/audit/head"


def task_path(task: str) -> str:
    return f"{TASKS}/{task}"


def model_path(task: str) -> str:
    return f"{TASKS}/{task}/model"


def update_path(task: str, update: str) -> str:
    return f"{TASKS}/{task}/updates/{update}"


def uploads_path(task: str) -> str:
    """Where resumable uploads of a task's updates begin."""
    return f"{TASKS}/{task}/uploads"


def upload_path(upload: str) -> str:
    """One resumable upload; its id is a secret between the client and the server."""
    return f"/v1/uploads/{upload}"


def rounds_path(task: str) -> str:
    return f"{TASKS}/{task}/rounds"


def events_path(task: str) -> str:
    """Changes of rounds, as server-sent events."""
    return f"{TASKS}/{task}/events"


def round_path(task: str, number: int) -> str:
    return f"{TASKS}/{task}/rounds/{number}"


def openings_path(task: str) -> str:
    return f"{TASKS}/{task}/openings"


def opening_path(task: str, number: int) -> str:
    return f"{TASKS}/{task}/rounds/{number}/opening"


def heads_path(task: str, number: int) -> str:
    return f"{TASKS}/{task}/rounds/{number}/heads"


def answer_path(task: str, number: int, holder: str) -> str:
    """Where a holder puts a `Screening`, `Vote` or `Objection`."""
    return f"{TASKS}/{task}/rounds/{number}/answers/{holder}"


def key_sections_path(task: str, number: int) -> str:
    """Every update's "key" section, one after the other in the manifest's order."""
    return f"{TASKS}/{task}/rounds/{number}/key-sections"


def share_path(task: str, number: int, holder: str) -> str:
    return f"{TASKS}/{task}/rounds/{number}/shares/{holder}"


def sum_path(task: str, number: int) -> str:
    return f"{TASKS}/{task}/rounds/{number}/sum"


def board_path(task: str, phase: str) -> str:
    return f"{TASKS}/{task}/board/{phase}"


def post_path(task: str, phase: str, holder: str) -> str:
    return f"{TASKS}/{task}/board/{phase}/{holder}"
