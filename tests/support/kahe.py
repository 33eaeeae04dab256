"""What an encryptor of scheme `kahe` draws, made repeatable."""

from __future__ import annotations

import numpy as np

from he_client.schemes.kahe import JOB
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.privacy.gaussian import Gaussian, Samples
from he_protocol.schemes.kahe import PROFILES, KaheProfile

SECURE = {name: profile for name, profile in PROFILES.items() if not profile.insecure_for_tests}
INSECURE = PROFILES["kahe-insecure"]
INSECURE_TASK = {"scheme": "kahe", "profile": INSECURE.name, "fingerprint": INSECURE.fingerprint}
"""What a task says that no party may take."""


def public_lanes(key: bytes, degree: int, modulus: int, group: int) -> np.ndarray:
    """a_16g to a_16g+15 in NTT form, word by word as the protocol states them: uint64, shape (N, 16)."""
    size = degree * 16 // 2 + 128
    words = expand_words(key, size * (group + 1))[size * group :].tolist()
    halves = [half for word in words[: size - 128] for half in (word & 0xFFFFFFFF, word >> 32)]
    spare, limit = iter(words[size - 128 :]), (1 << 32) // modulus * modulus
    residues = [(half if half < limit else next(spare)) % modulus for half in halves]
    return np.array(residues, dtype=np.uint64).reshape(degree, 16)


class FixedWords:
    """Stands in for the operating system: call n gives the keystream of SHA-256("hushsum/tests/words", seed, n).

    Under one thread an encryptor calls for the secret, then for the errors of each `JOB` coordinates (whole groups
    of 16 polynomials), then for the seed of each subshare and for the key of the explicit one.
    """

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.calls: list[np.ndarray] = []

    def __call__(self, count: int) -> np.ndarray:
        key = derive_key("hushsum/tests/words", self.seed, len(self.calls).to_bytes(8, "little"))
        self.calls.append(expand_words(key, count))
        return self.calls[-1]

    def secret(self, profile: KaheProfile) -> Samples:
        """The one-time key of the update that was sealed."""
        return sampler(profile).sample(self.calls[0], profile.degree)

    def errors(self, profile: KaheProfile, coefficients: int) -> Samples:
        """The errors of all its coefficients."""
        starts = range(0, coefficients, JOB)
        return np.concatenate(
            [sampler(profile).sample(self.calls[1 + at // JOB], min(JOB, coefficients - at)) for at in starts]
        )

    def seeds(self, parts: int) -> list[bytes]:
        """A seed for each part; the last is the key of the explicit part."""
        return [words.tobytes() for words in self.calls[-parts:]]


def sampler(profile: KaheProfile) -> Gaussian:
    return Gaussian(profile.error_std, profile.error_tail)
