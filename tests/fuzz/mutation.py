"""Damage to good bytes: flips, insertions, deletions, truncation, repetition, and pieces of other good bytes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

INTERESTING = (b"", b"\x00", b"\xff", b"\r\n", b'"', b"{", b"[" * 2000, b"-1", b"1e999", b"NaN", b"9" * 400, b"\\ud800")


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], *, most: int = 3) -> bytes:
    """One of the seeds after one to `most` changes; it may come out as it was."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 64)))
        match draw(st.sampled_from(["flip", "insert", "delete", "truncate", "repeat", "splice"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(st.one_of(st.sampled_from(INTERESTING), st.binary(max_size=8))) + data[at:]
            case "delete":
                data = data[:at] + data[end:]
            case "truncate":
                data = data[:at]
            case "repeat":
                data = data[:end] + data[at:]
            case "splice":
                other = draw(st.sampled_from(seeds))
                data = data[:at] + other[draw(st.integers(0, len(other))) :]
    return data
