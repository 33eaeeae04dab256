"""The same bytes under TenSEAL and SEAL themselves, down to every residue of SEAL's own decryption."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from he_protocol.arithmetic import ntt
from he_protocol.arithmetic.residues import Residues
from he_protocol.problems import PRIVATE_CONTEXT
from he_protocol.schemes import seal_codec
from he_protocol.schemes.ckks import PROFILES, Ckks, common_polynomial, decode
from he_protocol.schemes.scheme import combine
from he_testing.problems import expect_problem
from tests.support.tenseal_vector import ckks_vector

ts = pytest.importorskip("tenseal")
zstandard = pytest.importorskip("zstandard")

P = PROFILES["ckks-8192"]
EPOCH = bytes(40)
LEVEL = len(P.data_moduli)
WIDE = np.array(P.moduli, dtype=np.uint64)[None, :, None]


def small(rng: np.random.Generator, bound: int) -> Residues:
    """A random small polynomial at key level, NTT form."""
    out = ntt.lift(rng.integers(-bound, bound + 1, (1, P.degree)), P.moduli)
    ntt.forward(out, P.moduli)
    return out


def private_context():
    return ts.context(ts.SCHEME_TYPE.CKKS, P.degree, coeff_mod_bit_sizes=[50] * 4)


@pytest.fixture(scope="module")
def committee():
    """Three secret parts, which nobody else ever adds up, and the joint public key made from them."""
    rng = np.random.default_rng(7)
    a = common_polynomial(P, EPOCH)
    secrets = [small(rng, 1) for _ in range(3)]
    parts = [(WIDE - ntt.multiply(a, s, P.moduli) + small(rng, 10)) % WIDE for s in secrets]
    joint = np.concatenate([sum(parts[1:], parts[0]) % WIDE, a])
    context = ts.context_from(seal_codec.public_context(joint, P.moduli, P.scale))
    return secrets, context


@pytest.fixture(scope="module")
def encrypted(committee):
    """Values, TenSEAL's own object, and its residues (c0, c1)."""
    _, context = committee
    values = np.random.default_rng(8).integers(-(2**30), 2**30, P.slots)
    [found] = seal_codec.read_vector(ts.ckks_vector(context, values.tolist(), scale=P.scale).serialize())
    mode, payload = seal_codec.unwrap(found)
    assert mode == seal_codec.ZSTD
    payload = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    return values, found, seal_codec.read_ciphertext(payload, P.data_moduli, P.degree, P.scale)


def seal_decrypt(secret: Residues, ciphertext: bytes, folder: Path) -> Residues:
    """SEAL's Decryptor under a secret key of our making: the raw plaintext polynomial, NTT form, (1, limbs, N)."""
    import _tenseal_cpp as cpp

    owner = private_context()
    holder = owner.seal_context()
    context = holder.data
    body = struct.pack("<32sQd", seal_codec.parms_id(P.degree, P.moduli), secret.size, 1.0)
    body += seal_codec.wrap(struct.pack("<Q", secret.size) + np.ascontiguousarray(secret, dtype="<u8").tobytes())
    key, loaded, plain = cpp.SecretKey(), cpp.Ciphertext(), cpp.Plaintext()
    for name, data, target in (("key", seal_codec.wrap(body), key), ("ciphertext", ciphertext, loaded)):
        (folder / name).write_bytes(data)
        target.load(context, str(folder / name))
    cpp.Decryptor(context, key).decrypt(loaded, plain)
    assert plain.is_ntt_form()
    return np.array([plain.data(i) for i in range(plain.coeff_count())], dtype=np.uint64).reshape(1, LEVEL, P.degree)


def test_the_pinned_release_is_installed():
    assert ts.__version__ == P.tenseal


def test_parameter_names_are_seals():
    owner = private_context()
    holder = owner.seal_context()
    context = holder.data
    for found, moduli in ((context.key_parms_id(), P.moduli), (context.first_parms_id(), P.data_moduli)):
        assert np.array(found, dtype="<u8").tobytes() == seal_codec.parms_id(P.degree, moduli)


def test_the_primes_are_those_that_seal_creates():
    parameters = dict(seal_codec._fields(private_context().serialize(save_secret_key=False)))[1]
    assert seal_codec.unwrap(parameters)[0] in {seal_codec.PLAIN, seal_codec.ZSTD}
    ours = dict(
        seal_codec._fields(seal_codec.public_context(np.zeros((2, 4, 8192), dtype=np.uint64), P.moduli, P.scale))
    )[1]
    payload = seal_codec.unwrap(parameters)[1]
    if seal_codec.unwrap(parameters)[0] == seal_codec.ZSTD:
        payload = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    assert payload == seal_codec.unwrap(ours)[1]


def test_a_joint_key_enters_tenseal_without_a_secret(committee):
    _, context = committee
    assert context.is_public()
    assert context.has_public_key()
    assert not context.has_secret_key()
    assert context.global_scale == P.scale


def test_a_private_context_is_refused_and_a_public_one_is_not(committee):
    context = private_context()
    with expect_problem(PRIVATE_CONTEXT):
        seal_codec.refuse_private(context.serialize(save_secret_key=True))
    seal_codec.refuse_private(context.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False))
    seal_codec.refuse_private(committee[1].serialize())


@pytest.mark.parametrize("tag", [26 + (1 << 32), 26 + (1 << 34)])
def test_tenseal_takes_a_long_tag_for_the_secret_key_so_it_is_refused(tag):
    """The attack: TenSEAL loads the secret key from a field whose number looks unknown."""
    private = private_context().serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    key = dict(seal_codec._fields(private))[3]
    head = seal_codec._varint(26) + seal_codec._varint(len(key))
    at = private.index(head + key)
    smuggled = private[:at] + seal_codec._varint(tag) + private[at + 1 :]
    assert ts.context_from(smuggled).has_secret_key()
    with pytest.raises(Exception, match=r"tag above 32 bits"):
        seal_codec.refuse_private(smuggled)


def test_seals_own_decryption_is_c0_plus_c1_s_residue_for_residue(committee, encrypted, tmp_path):
    """The known answer behind threshold opening: the sum of shares c1*s_A and c0 is what SEAL would decrypt."""
    secrets, _ = committee
    values, found, (c0, c1) = encrypted
    limbs = WIDE[:, :LEVEL]
    shares = [ntt.multiply(c1[None], s[:, :LEVEL], P.data_moduli) for s in secrets]
    opened = (c0[None] + sum(shares[1:], shares[0])) % limbs
    summed = sum(secrets[1:], secrets[0]) % WIDE
    np.testing.assert_array_equal(seal_decrypt(summed, found, tmp_path), opened)
    slots = decode(opened, P)
    assert np.abs(slots - values).max() < 2**-10
    np.testing.assert_array_equal(combine(Ckks(P), c0[None], shares, P.slots, 1, EPOCH), values)


def test_one_secret_part_less_opens_nothing(committee, encrypted):
    secrets, _ = committee
    _, _, (c0, c1) = encrypted
    shares = [ntt.multiply(c1[None], s[:, :LEVEL], P.data_moduli) for s in secrets[:2]]
    with pytest.raises(Exception, match="combine-refused"):
        combine(Ckks(P), c0[None], shares, P.slots, 1, EPOCH)


def test_our_ciphertext_is_decrypted_by_seal_residue_for_residue(tmp_path):
    """Arbitrary residues, written by us, not by TenSEAL."""
    rng = np.random.default_rng(9)
    limbs = WIDE[0, :LEVEL]
    c = np.stack([rng.integers(0, limbs, (LEVEL, P.degree), dtype=np.uint64) for _ in range(2)])
    secret = small(rng, 1)
    wanted = (c[:1] + ntt.multiply(c[1:], secret[:, :LEVEL], P.data_moduli)) % limbs
    got = seal_decrypt(secret, seal_codec.ciphertext(c, P.data_moduli, P.scale), tmp_path)
    np.testing.assert_array_equal(got, wanted)


def test_seals_secret_key_is_ternary_under_our_transform():
    """SEAL's NTT is ours: minimal root, bit-reversed order."""
    owner = private_context()  # the bindings return references: each needs its owner alive
    holder = owner.secret_key()
    key = holder.data
    secret = key.data()
    residues = np.array([secret.data(i) for i in range(4 * P.degree)], dtype=np.uint64).reshape(1, 4, P.degree)
    ntt.inverse(residues, P.moduli)
    signed = residues.astype(np.int64)
    signed -= np.where(residues > WIDE // np.uint64(2), WIDE, 0).astype(np.int64)
    assert set(np.unique(signed).tolist()) == {-1, 0, 1}
    assert (signed == signed[:, :1]).all()


def test_decode_agrees_with_tenseal():
    rng = np.random.default_rng(10)
    coefficients = [int(c) << 80 for c in rng.integers(-(2**50), 2**50, P.degree)]
    m = np.array([[[c % q for c in coefficients] for q in P.data_moduli]], dtype=np.uint64)
    ntt.forward(m, P.data_moduli)
    found = seal_codec.ciphertext(np.concatenate([m, np.zeros_like(m)]), P.data_moduli, P.scale)
    vector = ts.ckks_vector_from(private_context(), ckks_vector(P.slots, found, P.scale))
    slots = decode(m, P)
    assert np.abs(slots).max() > 2**20
    np.testing.assert_allclose(slots, vector.decrypt(), rtol=0, atol=np.abs(slots).max() * 1e-12)
