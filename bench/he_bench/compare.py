"""Peers side by side: each in its own process, at work in turns, so that a busy machine disturbs all alike."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

import he_protocol
from he_bench import machine
from he_bench.peers.worker import MISSING
from he_bench.profiles import default_profile, profiles
from he_bench.results import About, Comparison, Missing, PeerResult, Spread

OTHERS = ("plain", "tenseal", "nvflare:1", "nvflare:20", "flower:2", "flower:24")
"""Flower with the two neighbours of its own example (num-shares = 3), and with two dozen."""
_START = "import sys; sys.path.extend(sys.argv.pop(1).split(':')); from he_bench.peers.worker import main; main()"
Progress = Callable[[str], None]


def peer_names() -> list[str]:
    """Every peer: HushSum's profiles first, the default profile foremost."""
    ours = sorted(profiles(), key=lambda name: name != default_profile())
    return [*(f"hushsum:{name}" for name in ours), *OTHERS]


class Worker:
    """A process that runs `he_bench.peers.worker` for one peer."""

    def __init__(self, name: str, python: str, parameters: int, clients: int, cores: int) -> None:
        self.name = name
        # Appended to the path, so that a foreign interpreter's own packages come first.
        roots = {str(Path(file).parents[1]): None for file in (__file__, he_protocol.__file__)}
        arguments = [python, "-c", _START, ":".join(roots), name, str(parameters), str(clients), str(cores)]
        # A file, not a pipe: a library that logs a lot would block on a pipe that nobody reads.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(  # noqa: S603
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._errors.close()

    def read(self) -> dict[str, Any]:
        """The next answer; {"missing": why} when there is none to come."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = msgspec.json.decode(line)
            return answer
        self._process.wait()
        self._errors.seek(0)
        return {MISSING: (self._errors.read().strip().splitlines() or ["it ended without a word"])[-1]}

    def ask(self, command: str) -> dict[str, Any]:
        """One command and its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.read()


def compare(
    names: Sequence[str],
    pythons: Mapping[str, str],
    *,
    parameters: int,
    clients: int,
    cores: int,
    repetitions: int,
    reference: str,
    progress: Progress,
) -> Comparison:
    """Measure peers in alternation (A B C A B C ...). `pythons` names other interpreters, by peer or module."""
    described = machine.describe()
    results: dict[str, PeerResult | Missing] = {}
    runs: dict[str, _Run] = {}
    for name in names:
        progress(f"starting {name}")
        python = pythons.get(name, pythons.get(name.partition(":")[0], sys.executable))
        run = _Run.start(Worker(name, python, parameters, clients, cores))
        if isinstance(run, Missing):
            results[name] = run
        else:
            runs[name] = run
    for number in range(repetitions + 1):  # the first one warms up
        for name, run in list(runs.items()):
            progress(f"{name}, {number} of {repetitions}" if number else f"{name}, warming up")
            if (missing := run.repeat(keep=number > 0)) is not None:
                results[name] = missing
                del runs[name]
    for name, run in runs.items():
        progress(f"{name}, checking")
        results[name] = run.finish()
    return Comparison(described, parameters, clients, cores, reference, tuple(results[name] for name in names))


class _Run:
    """One peer's measurements so far."""

    def __init__(self, worker: Worker, about: About) -> None:
        self._worker = worker
        self._about = about
        self._send: list[float] = []
        self._encrypt: list[float] = []
        self._receive: list[float] = []
        self._traffic = 0

    @classmethod
    def start(cls, worker: Worker) -> _Run | Missing:
        hello = worker.read()
        if MISSING in hello:
            with worker:
                return Missing(worker.name, hello[MISSING])
        return cls(worker, msgspec.convert(hello, About))

    def repeat(self, *, keep: bool) -> Missing | None:
        sent = self._worker.ask("send")
        received = self._worker.ask("receive") if MISSING not in sent else sent
        if MISSING in received:
            with self._worker:
                return Missing(self._worker.name, received[MISSING])
        if keep:
            self._send.append(sent["seconds"])
            self._encrypt.append(sent["encrypting"])
            self._receive.append(received["seconds"])
        self._traffic = sent["bytes"]
        return None

    def finish(self) -> PeerResult | Missing:
        with self._worker:
            checked = self._worker.ask("check")
        if MISSING in checked:
            return Missing(self._worker.name, checked[MISSING])
        spreads = (Spread.of(self._send), Spread.of(self._encrypt), Spread.of(self._receive))
        return PeerResult(self._worker.name, self._about, *spreads, self._traffic, checked["error"])
