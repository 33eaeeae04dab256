"""The secret half of scheme `ckks` against plain big-integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from he_holder.schemes import make_dealer
from he_holder.schemes.ckks import SecretSubshare, flood
from he_protocol.arithmetic import ntt
from he_protocol.arithmetic.keystream import expand_words
from he_protocol.arithmetic.residues import ResidueLayout
from he_protocol.schemes.ckks import PROFILES, CkksProfile, common_polynomial
from tests.support.parties import World

PROFILE: CkksProfile = PROFILES["ckks-8192"]
LAYOUT = ResidueLayout(2, PROFILE.data_moduli, PROFILE.degree, PROFILE.bits)
KEY = bytes(range(32))
BOUND = 1 << 84


def reference(key: bytes, count: int) -> list[int]:
    """The low 85 bits of each 16-byte little-endian word of the key stream, less 2^84."""
    stream = expand_words(key, 2 * count).tobytes()
    words = (int.from_bytes(stream[16 * i : 16 * i + 16], "little") for i in range(count))
    return [(word & ((1 << 85) - 1)) - BOUND for word in words]


def centred(residues: np.ndarray, moduli: tuple[int, ...]) -> list[int]:
    """The integer nearest to zero with these residues, by the Chinese remainder theorem; shape (limbs, n)."""
    modulus = int(np.prod(np.array(moduli, dtype=object)))
    weights = [modulus // q * pow(modulus // q, -1, q) for q in moduli]
    values = sum(row.astype(object) * weight for row, weight in zip(residues, weights, strict=True)) % modulus
    return [int(v) - modulus if v > modulus // 2 else int(v) for v in values]


def test_flood_is_the_reference_bit_for_bit() -> None:
    noise = flood(KEY, LAYOUT, PROFILE)
    wanted = np.array(reference(KEY, 2 * PROFILE.degree), dtype=object).reshape(2, PROFILE.degree)
    for limb, modulus in enumerate(PROFILE.data_moduli):
        assert (noise[:, limb, :] == (wanted % modulus).astype(np.uint64)).all()


def test_flood_is_uniform_up_to_its_bounds() -> None:
    """Reconstructed by CRT: inside [-2^84, 2^84), near both ends, chi-square over 16 bins below the 10^-6 point."""
    noise = flood(KEY, LAYOUT, PROFILE)
    values = [value for polynomial in noise for value in centred(polynomial, PROFILE.data_moduli)]
    assert values == reference(KEY, 2 * PROFILE.degree)
    assert -BOUND <= min(values) < -BOUND + BOUND // 1000
    assert BOUND - BOUND // 1000 < max(values) < BOUND
    counts = np.bincount([(value + BOUND) >> 81 for value in values], minlength=16)
    low = np.bincount([value & 15 for value in values], minlength=16)
    for bins in (counts, low):
        mean = len(values) / 16
        assert len(bins) == 16
        assert ((bins - mean) ** 2 / mean).sum() < 56.5  # 15 degrees of freedom


def test_flood_depends_on_its_key() -> None:
    assert (flood(KEY, LAYOUT, PROFILE) == flood(KEY, LAYOUT, PROFILE)).all()
    assert (flood(KEY, LAYOUT, PROFILE) != flood(bytes(32), LAYOUT, PROFILE)).mean() > 0.999


def test_chunks_of_one_opening_have_noise_of_their_own() -> None:
    one, two = flood(KEY, LAYOUT, PROFILE)
    assert (one != two).mean() > 0.999


def test_a_secret_is_uniform_ternary() -> None:
    secret = SecretSubshare.derive(KEY).secret(PROFILE)
    assert secret.shape == (1, PROFILE.degree)
    values, counts = np.unique(secret, return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    mean = PROFILE.degree / 3
    assert ((counts - mean) ** 2 / mean).sum() < 27.6  # 2 degrees of freedom, 10^-6


def test_an_error_is_a_narrow_gaussian() -> None:
    error = SecretSubshare.derive(KEY).error(PROFILE)[0].astype(float)
    assert abs(error.mean()) < 5 * 3.2 / np.sqrt(error.size)
    assert abs(error.std() / 3.2 - 1) < 5 / np.sqrt(2 * error.size)
    assert np.abs(error).max() <= 9.2 * 3.2


def test_the_three_keys_of_a_part_differ_and_follow_from_its_seed() -> None:
    one, same, other = SecretSubshare.derive(KEY), SecretSubshare.derive(KEY), SecretSubshare.derive(bytes(32))
    assert one == same
    assert len({one.secret_key, one.error_key, one.flood_key, other.secret_key, other.error_key, other.flood_key}) == 6


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_key_part_is_minus_a_times_s_plus_e(world: World) -> None:
    """Schoolbook negacyclic product at a few coefficients, modulo all four primes."""
    part, n = SecretSubshare.derive(KEY), PROFILE.degree
    secret, error = part.secret(PROFILE)[0].astype(object), part.error(PROFILE)[0]
    public = common_polynomial(PROFILE, world.task.epoch_id)
    made = make_dealer(world.task).public_key_share(KEY)
    assert made.shape == public.shape == (1, 4, n)
    ntt.inverse(public, PROFILE.moduli)
    ntt.inverse(made, PROFILE.moduli)
    for limb, modulus in enumerate(PROFILE.moduli):
        a = public[0, limb].astype(object)
        for k in (0, 1, n // 2, 4097, n - 1):
            wrapped = np.concatenate([a[k::-1], -a[:k:-1]])  # a[k-j], negated where it wraps: X^N = -1
            assert made[0, limb, k] == (-int(wrapped @ secret) + int(error[k])) % modulus


def test_key_parts_are_bound_to_task_and_epoch(world: World) -> None:
    other = world.signed(world.task.config, epoch=2)
    assert (make_dealer(world.task).public_key_share(KEY) != make_dealer(other).public_key_share(KEY)).mean() > 0.999
