"""An encrypted update of scheme `kahe` is a CKKS ciphertext (b, -a): Microsoft SEAL decrypts it, by its own arithmetic.

SEAL takes the moduli of kahe-30 and kahe-20 (one prime each, no special prime) through a TenSEAL
context with a public key written by us; ring degree 512 has no entry in its security table, and
the bindings cannot switch that table off, so kahe-14 is held against plain integers only.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from he_protocol.arithmetic import ntt, residues
from he_protocol.arithmetic.residues import Residues
from he_protocol.config import TensorSpec
from he_protocol.schemes import seal_codec
from he_protocol.schemes.kahe import PROFILES, KaheProfile, common_key
from he_protocol.schemes.scheme import combine
from tests.support.kahe import FixedWords, public_lanes
from tests.support.parties import World, random_integers

ts = pytest.importorskip("tenseal")

SEALS = pytest.mark.parametrize("name", ["kahe-30", "kahe-20"])
POLYNOMIALS = 3


def seal_context(profile: KaheProfile):
    """SEAL's context for exactly one prime: read from bytes, since TenSEAL makes none that cannot switch keys."""
    key = np.zeros((2, 1, profile.degree), dtype=np.uint64)
    return ts.context_from(seal_codec.public_context(key, (profile.modulus,), 1.0))


def seal_decrypt(profile: KaheProfile, secret: np.ndarray, b: Residues, number: int, a: Residues, folder: Path):
    """SEAL's Decryptor on (b_j, -a_j) under `secret`: the centred coefficients of polynomial j."""
    import _tenseal_cpp as cpp

    q, n = profile.modulus, profile.degree
    owner = seal_context(profile)
    holder = owner.seal_context()
    context = holder.data
    key = ntt.lift(secret[None, :], (q,))
    c0 = b[number : number + 1].copy()
    for polynomial in (key, c0):
        ntt.forward(polynomial, (q,))
    minus_a = (np.uint64(q) - a[:, number]) % np.uint64(q)
    body = struct.pack("<32sQd", seal_codec.parms_id(n, (q,)), n, 1.0)
    body += seal_codec.wrap(struct.pack("<Q", n) + key.astype("<u8").tobytes())
    pair = seal_codec.ciphertext(np.stack([c0[0], minus_a[None, :]]), (q,), 1.0)
    loaded, found, plain = cpp.SecretKey(), cpp.Ciphertext(), cpp.Plaintext()
    for what, data, target in (("key", seal_codec.wrap(body), loaded), ("ciphertext", pair, found)):
        (folder / what).write_bytes(data)
        target.load(context, str(folder / what))
    cpp.Decryptor(context, loaded).decrypt(found, plain)
    assert plain.is_ntt_form()
    out = np.array([[[plain.data(i) for i in range(plain.coeff_count())]]], dtype=np.uint64)
    ntt.inverse(out, (q,))
    signed = out.reshape(-1).astype(np.int64)
    return np.where(signed > q // 2, signed - q, signed)


@pytest.fixture(params=["kahe-30", "kahe-20"])
def world(request: pytest.FixtureRequest) -> World:
    profile = PROFILES[request.param]
    length = (POLYNOMIALS - 1) * profile.degree + 7
    return World(plan={"scheme": "kahe", "profile": profile.name, "scale": 1.0}, tensors=(TensorSpec("w", (length,)),))


def public(profile: KaheProfile, epoch_id: bytes) -> Residues:
    """a_0 to a_15 as the design states them, NTT form, shape (N, 16)."""
    return public_lanes(common_key(epoch_id), profile.degree, profile.modulus, 0)


@SEALS
def test_seal_accepts_the_parameters_at_128_bits(name):
    owner = seal_context(PROFILES[name])
    holder = owner.seal_context()
    context = holder.data
    assert context.parameters_set()
    assert not context.using_keyswitching()
    found = np.array(context.first_parms_id(), dtype="<u8").tobytes()
    assert found == seal_codec.parms_id(PROFILES[name].degree, (PROFILES[name].modulus,))


def test_seal_knows_no_ring_as_small_as_kahe_14s():
    with pytest.raises(ValueError, match="parameters are not set correctly"):
        seal_context(PROFILES["kahe-14"])


def test_seal_decrypts_an_update_to_its_values_and_errors(world: World, tmp_path: Path):
    """Residue for residue: b - a*s is v + e, with the errors that the sealer drew."""
    task = world.task
    profile = PROFILES[task.config.encryption.profile]
    values, words = random_integers(task.length, 1, 1 << 15), FixedWords(b"one")
    body = world.encrypt_kahe("client", bytes(16), values, words=words)
    b = residues.unpack(body["b"], task.section("sum").layout)  # type: ignore[arg-type]
    padded = np.zeros(POLYNOMIALS * profile.degree, dtype=np.int64)
    padded[: values.size] = values
    wanted = (padded + words.errors(profile, padded.size)).reshape(POLYNOMIALS, -1)
    a, secret = public(profile, task.epoch_id), words.secret(profile)
    for number in range(POLYNOMIALS):
        got = seal_decrypt(profile, secret, b, number, a, tmp_path)
        np.testing.assert_array_equal(got, wanted[number])
    wrong = secret.copy()
    wrong[0] += 1
    assert (seal_decrypt(profile, wrong, b, 0, a, tmp_path) == wanted[0]).mean() < 0.01


def test_seal_decrypts_a_sum_under_the_summed_key_as_combine_opens_it(world: World, tmp_path: Path):
    task = world.task
    profile, layout = PROFILES[task.config.encryption.profile], task.section("sum").layout
    total, secret = layout.zeros(), np.zeros(profile.degree, dtype=np.int64)  # type: ignore[union-attr]
    for i in range(3):
        words = FixedWords(bytes([i]))
        values = random_integers(task.length, i, 1 << 15)
        body = world.encrypt_kahe(f"client-{i}", bytes([i]) * 16, values, words=words)
        residues.fold(total.reshape(layout.rows, layout.degree), body["b"], layout)  # type: ignore[arg-type, union-attr]
        secret += words.secret(profile)
    a = public(profile, task.epoch_id)
    ours = [seal_decrypt(profile, secret, total, number, a, tmp_path) for number in range(POLYNOMIALS)]
    released = [(secret % (1 << 32)).astype(np.uint64).reshape(1, 1, -1)]
    opened = combine(task.scheme, total, released, task.length, 3, task.epoch_id)
    np.testing.assert_array_equal(np.concatenate(ours)[: task.length], opened)
