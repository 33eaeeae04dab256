"""Private key files, plain and under a passphrase."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from joserfc import jwe
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey

from he_party.keyfile import KeyRecord, read_private
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import SectionEntry, to_json

warnings.simplefilter("ignore", SecurityWarning)  # few rounds: this key guards nothing, and has to open fast

PASSPHRASE = "a passphrase of fair length"
_ALGORITHMS = ["PBES2-HS512+A256KW", "A256GCM"]
_RECORD = to_json(KeyRecord("holder-0", bytes(32), bytes(32)))
_FILE = Path(tempfile.gettempdir()) / f"hushsum-fuzz-{SigningKey.generate().public.hex()}"
SEEDS = [
    _RECORD,
    jwe.encrypt_compact(
        {"alg": _ALGORITHMS[0], "enc": _ALGORITHMS[1], "p2c": 1000},
        _RECORD,
        OctKey.import_key(PASSPHRASE.encode()),
        algorithms=_ALGORITHMS,
    ).encode(),
]


def run(data: bytes) -> None:
    _FILE.write_bytes(data)
    _FILE.chmod(0o600)
    try:
        with suppress(ProblemError):
            record = read_private(_FILE, KeyRecord, PASSPHRASE)
            assert record.signing.sign(SectionEntry("p", 0, bytes(32)))
    finally:
        _FILE.unlink()
