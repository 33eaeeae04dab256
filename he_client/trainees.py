"""Who trains in one call of `he-client train`: this device, or clients of a lab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from he_client.attempt import Train
from he_client.importing import NAMED, load_named
from he_client.lab import TASK, Lab, as_client
from he_client.settings import ClientSettings
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS


@dataclass(frozen=True)
class Trainee:
    """A client's settings and its training function; `name` where there may be several."""

    settings: ClientSettings
    train: Train
    name: str = ""


def load_function(name: str) -> Train:
    """The training function that FILE.py:NAME or MODULE:NAME stands for. Raises `bad-settings`."""
    found: Train = load_named(name)
    if not callable(found):
        raise ProblemError(
            BAD_SETTINGS, f"{name!r} cannot be called", expected=f"{NAMED} of a function", got=type(found)
        )
    return found


def this_device(settings: ClientSettings, train: Train) -> list[Trainee]:
    """Raises `bad-settings` for a function of labs only."""
    return [Trainee(settings, as_client(train, None))]


def lab_clients(lab: Lab, train: Train, config: Path | None, number: int | None) -> list[Trainee]:
    """The client of the lab with this number, counted from 1; None: all of them. Raises `bad-settings`."""
    url = lab.url()
    folders = dict(enumerate(lab.clients)) if number is None else {number - 1: lab.client(number)}
    return [
        Trainee(ClientSettings.load(config, data_dir=folder, server=url, task=TASK), as_client(train, at), folder.name)
        for at, folder in folders.items()
    ]
