"""Clients of scheme `kahe` that lie in their key shares."""

from __future__ import annotations

from collections.abc import Callable

from he_protocol.envelope import seal
from he_protocol.schemes.kahe import Kahe, box_bytes, envelope_info
from tests.support.kahe import FixedWords
from tests.support.openings import Sent, send_kahe
from tests.support.parties import World, random_integers


def boxes(made: World, shared: bytes) -> tuple[bytes, list[bytes]]:
    """The explicit part, and every holder's envelope."""
    assert isinstance(made.task.scheme, Kahe)
    at, size = made.task.scheme.explicit_bytes, box_bytes(made.task.sharing)
    return shared[:at], [shared[i : i + size] for i in range(at, len(shared), size)]


def poisoned(made: World, name: str, change: Callable[[list[bytes], int], list[bytes]]) -> Sent:
    """An honest b, with envelopes made by hand: `change` gives the seeds for a holder from the honest ones."""
    words = FixedWords(name.encode())
    sent = send_kahe(made, name, random_integers(made.task.length, 5, 1000), words=words)
    explicit, _ = boxes(made, sent.body["shares"])
    seeds, sharing = words.seeds(made.task.sharing.subshares), made.task.sharing
    envelopes = [
        seal(
            b"".join(change(seeds, index)[part] for part in sharing.subshares_of(index)),
            holder.hpke,
            envelope_info(made.task.epoch_id, name, sent.header.update_id, holder.name),
        )
        for index, holder in enumerate(made.task.config.committee.holders)
    ]
    return resealed(made, sent, explicit + b"".join(envelopes))


def unopenable(made: World, sent: Sent, *holders: int) -> Sent:
    """The same update, with envelopes that these holders cannot open."""
    explicit, envelopes = boxes(made, sent.body["shares"])
    for holder in holders:
        envelopes[holder] = bytes([envelopes[holder][0] ^ 1]) + envelopes[holder][1:]
    return resealed(made, sent, explicit + b"".join(envelopes))


def resealed(made: World, sent: Sent, shared: bytes) -> Sent:
    """The same update under other key shares, signed by its client."""
    body = sent.body | {"shares": shared}
    return Sent(sent.integers, body, made.update(sent.header.client, body, update_id=sent.header.update_id))
