"""AES-256-CTR against NIST SP 800-38A, and keys derived injectively."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from he_protocol.arithmetic.keystream import derive_key, expand_words

# SP 800-38A, F.5.5 CTR-AES256.Encrypt
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHER = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)
CHUNK_WORDS = (1 << 20) // 8
"""The keystream is made so much at a time."""


def by_blocks(key: bytes, blocks: int, first: int) -> bytes:
    """The keystream from single AES blocks (SP 800-38A, 6.5): the counter is one 128-bit big-endian number."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    counters = b"".join(((first + i) % (1 << 128)).to_bytes(16, "big") for i in range(blocks))
    return encryptor.update(counters)


def test_the_keystream_is_nists():
    stream = expand_words(KEY, 8, block=COUNTER).tobytes()
    assert bytes(a ^ b for a, b in zip(stream, PLAIN, strict=True)) == CIPHER


@pytest.mark.parametrize("block", [0, 1, 3, 255, 256, (1 << 32) - 1, (1 << 64) - 1])
def test_a_block_offset_enters_the_same_stream(block):
    whole = expand_words(KEY, 2 * 6, block=block).tobytes()
    assert whole == by_blocks(KEY, 6, block)
    for skip in range(6):
        assert expand_words(KEY, 2 * (6 - skip), block=block + skip).tobytes() == whole[16 * skip :]


def test_any_size_is_a_prefix():
    whole = expand_words(KEY, 100).tolist()
    assert all(expand_words(KEY, n).tolist() == whole[:n] for n in range(100))
    assert expand_words(KEY[::-1], 100).tolist() != whole


@pytest.mark.parametrize("block", [0, 5, (1 << 32) - 7])
@pytest.mark.parametrize("beyond", [-1, 0, 1, 2 * CHUNK_WORDS + 3])
def test_chunks_join_into_one_stream(block, beyond):
    """Across the boundary of the chunks in which it is made, also where a chunk ends inside a block."""
    count = CHUNK_WORDS + beyond
    got = expand_words(KEY, count, block=block)
    assert got.size == count
    assert got.tobytes() == by_blocks(KEY, (count + 1) // 2, block)[: 8 * count]


def test_words_are_little_endian():
    words = expand_words(KEY, 4, block=7)
    stream = by_blocks(KEY, 2, 7)
    assert words.tolist() == [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(4)]
    assert words.dtype == np.uint64


def test_a_derived_key_is_sha256_of_length_prefixed_fields():
    text = b"\x03" + bytes(7) + b"dom" + b"\x02" + bytes(7) + b"ab"
    assert derive_key("dom", b"ab") == hashlib.sha256(text).digest()


def test_fields_cannot_be_shifted_into_each_other():
    """Without length prefixes ("ab", "c") and ("a", "bc") would give one key for two transcripts."""
    inputs = [
        ("d", b"ab", b"c"),
        ("d", b"a", b"bc"),
        ("d", b"abc"),
        ("d", b"abc", b""),
        ("d", b"", b"abc"),
        ("dabc",),
        ("da", b"bc"),
    ]
    assert len({derive_key(*fields) for fields in inputs}) == len(inputs)
