"""Somebody takes key holders' machines and has kept what went over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from he_holder.hpke_key import HpkeKey
from he_holder.keyring import HpkeRecord
from he_holder.schemes import make_share_maker
from he_protocol.errors import ProblemError
from he_protocol.messages import from_json
from he_protocol.privacy.quantise import Integers
from tests.support.openings import Sent, combine
from tests.support.parties import World


def keys_in(folder: Path) -> list[HpkeKey]:
    """Every HPKE key in any file of a holder that used no passphrase."""
    found = []
    for path in folder.rglob("*"):
        try:
            found.append(HpkeKey(from_json(path.read_bytes(), HpkeRecord, limit=1 << 30).private))
        except (ProblemError, IsADirectoryError):
            continue
    return found


def read_one_update(world: World, folders: Mapping[int, Path], sent: Sent) -> Integers:
    """One client's update, opened with the keys in seized folders (by holder number), scheme `kahe`.

    Raises KeyError when a part of its key is known to none of them.
    """
    name = world.task.section("key").name
    parts: dict[int, bytes] = {}
    for index, folder in folders.items():
        for key in keys_in(folder):
            total = make_share_maker(world.task, index, key, {}).begin()
            try:
                total.add(sent.header, sent.body[name])
            except ProblemError:
                continue
            parts |= dict(total.release(bytes(32), 0))
    return combine(world, parts, [sent])
