"""A client's key shares as a holder reads them: damaged on the way, or sealed by a client that lies."""

from __future__ import annotations

from he_holder.schemes.kahe import KaheKeySum
from he_protocol import envelope
from he_protocol.errors import ProblemError
from he_protocol.messages import SectionEntry, UpdateHeader
from he_protocol.schemes.kahe import ENVELOPE_BYTES, Kahe, box_bytes, envelope_info
from he_protocol.task import Task
from tests.vectors.parties import hpke_key, kahe_config

TASK = Task(kahe_config("kahe-14"), "", bytes(32))
HEADER = UpdateHeader(
    TASK.hash, 1, bytes(16), "phone-1", 0, 0, tuple(SectionEntry(part.name, part.size, bytes(32)) for part in TASK.body)
)
SIZE = TASK.section("key").size
_KEY = hpke_key(0)
_INFO = envelope_info(TASK.epoch_id, HEADER.client, HEADER.update_id, TASK.config.committee.holders[0].name)
SEEDS = [b"\x00" + bytes(SIZE), b"\x01" + bytes(64), b"\x01" + bytes(range(200))]


def run(data: bytes) -> None:
    """First byte even: the whole part. Odd: what a valid envelope holds, with an explicit part that nobody sealed."""
    assert isinstance(TASK.scheme, Kahe)
    body = data[1:]
    if data and data[0] % 2:
        plain = _fit(body, box_bytes(TASK.sharing) - ENVELOPE_BYTES)
        body = bytes(TASK.scheme.explicit_bytes) + envelope.seal(plain, _KEY.public, _INFO)
    total = KaheKeySum(TASK, 0, _KEY)
    before = list(total.release(b"", 0))
    try:
        total.add(HEADER, _fit(body, SIZE))  # a holder checks the size before
    except ProblemError:
        assert list(total.release(b"", 0)) == before, "a refused update was added"


def _fit(data: bytes, size: int) -> bytes:
    return data.ljust(size, b"\x00")[:size]
