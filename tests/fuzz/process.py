"""The process of one target: `python -m tests.fuzz.process NAME [libFuzzer's options and folders]`."""

from __future__ import annotations

import sys

import atheris

# numba compiles these from their bytecode and cannot read it once it is instrumented
COMPILED = [
    *(f"he_protocol.arithmetic.{name}" for name in ("ntt", "ntt_lanes", "residues")),
    *(f"he_protocol.privacy.{name}" for name in ("gaussian", "quantise")),
    *(f"he_protocol.schemes.{name}" for name in ("registry", "scheme")),
]

if __name__ == "__main__":
    with atheris.instrument_imports(
        include=[
            "he_protocol",
            "he_server.blobs.tensor_file",
            "he_holder.schemes",
            "tests.fuzz.targets",
            "safetensors",
            "joserfc",
        ],
        exclude=COMPILED,
    ):
        from tests.fuzz import targets

        target = targets.load(sys.argv[1])
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
    atheris.Fuzz()
