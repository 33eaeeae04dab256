"""One point in a process of its own: `python -m he_bench.isolated POINT SECONDS` prints the result as JSON.

A fresh process for every point keeps one case's caches, heaps and threads out of the next one's figures.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from he_bench.cases import load_case
from he_bench.cores import restrict
from he_bench.results import Failed, Measurement, Point
from he_bench.timing import measure
from he_protocol.errors import ProblemError

WARM_UP_PARAMETERS = 5000
IN_PROCESS = frozenset({"encrypt", "encrypt_noise", "fold", "share", "open"})
"""Cases whose kernels must be compiled and pools started here; the others' processes warm up on a repetition."""


async def measured(point: Point, budget: float) -> Measurement | Failed:
    """Warm up, then measure."""
    prepare = load_case(point.case)
    try:
        if point.case in IN_PROCESS:
            small = msgspec.structs.replace(point, parameters=min(WARM_UP_PARAMETERS, point.parameters), clients=2)
            async with prepare(small) as workload:
                await workload.run()
        async with prepare(point) as workload:
            if point.case not in IN_PROCESS:
                await workload.run()
            return await measure(point, workload, budget)
    except ProblemError as refusal:
        return Failed(point, str(refusal))


def main() -> None:
    """Measure the point in the first argument, for about the seconds in the second."""
    point = msgspec.json.decode(sys.argv[1], type=Point)
    restrict(point.cores)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measured(point, float(sys.argv[2])))))


if __name__ == "__main__":
    main()
