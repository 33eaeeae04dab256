"""Compile all kernels before tests run, `python -m tests.warm`: compiling holds the interpreter for seconds, and the
tests that speak to servers in their own process would take that for an outage."""

from __future__ import annotations

from itertools import chain

import he_client.schemes
import he_holder.schemes
import he_server.services.kernels
from he_party.kernels import warm


def main() -> None:
    parties = (he_client.schemes, he_holder.schemes, he_server.services.kernels)
    print("kernels:", warm(chain.from_iterable(party.kernel_steps() for party in parties)))


if __name__ == "__main__":
    main()
