"""One peer in a process of its own: `python -m he_bench.peers.worker PEER PARAMETERS CLIENTS CORES`.

It speaks JSON lines: first the peer's description (or why it cannot be measured), then an answer to every command
on standard input: "send" and "receive" are done twice and timed the second time, so that nobody pays for
caches that another peer's turn has emptied; "check" compares an opened mean with the plain one.
Only the standard library and numpy are needed, so foreign interpreters can run it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from he_bench.cores import restrict

if TYPE_CHECKING:
    from he_bench.peers import Floats, Peer

CHECKED_UPDATES = 3
MISSING = "missing"
T = TypeVar("T")


def main() -> None:
    """Serve commands until standard input ends."""
    name, parameters, clients, cores = sys.argv[1:]
    restrict(int(cores))
    # The real standard output carries answers only: libraries that print do it on standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        serve(name, int(parameters), int(clients), answer)
    except ImportError as error:
        answer(**{MISSING: str(error)})


def serve(name: str, parameters: int, clients: int, answer: Callable[..., None]) -> None:
    """Make the peer and obey. Raises `ImportError` when it is not installed."""
    from he_bench.peers import Work
    from he_bench.updates import random_update

    module_name, _, variant = name.partition(":")
    module = import_module(f"he_bench.peers.{module_name}")
    update = random_update(parameters)
    peer: Peer = module.make(Work(update, clients), variant)
    checked: Peer = module.make(Work(update, clients), variant)
    answer(
        library=peer.library,
        setting=peer.setting,
        decrypts=peer.decrypts,
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )
    for line in sys.stdin:
        match line.strip():
            case "send":
                seconds, size = _timed(peer.send)
                answer(seconds=seconds, encrypting=seconds - peer.signing, bytes=size)
            case "receive":
                seconds, _ = _timed(peer.receive)
                answer(seconds=seconds)
            case "check":
                answer(error=_error(checked, update))
            case command:
                raise ValueError(f"unknown command {command!r}")


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    work()
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _error(peer: Peer, update: Floats) -> float:
    """Largest difference between an update and the opened mean of copies of its message."""
    peer.send()
    for _ in range(CHECKED_UPDATES):
        peer.receive()
    return float(abs(peer.mean() - update).max())


if __name__ == "__main__":
    main()
