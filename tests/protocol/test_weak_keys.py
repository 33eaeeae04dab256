"""Keys for which anybody can sign: points of small order, and second spellings of a point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace

from he_authority.enrollment import issue_credential
from he_protocol.identity import jws
from he_protocol.identity.credentials import check_credential
from he_protocol.identity.jws import CURVE_PRIME, SigningKey, check_public, fingerprint, jwk_x, public_from_jwk, verify
from he_protocol.messages import Cnf, Credential, EnrollRequest, Jwk
from he_protocol.problems import BAD_SIGNATURE, MALFORMED
from he_protocol.task import Task
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.protocol.parties import ALICE, AUTHORITY, NOW, task_config

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, CURVE_PRIME) % CURVE_PRIME
Point = tuple[int, int]


def add(p: Point, q: Point) -> Point:
    """RFC 8032 section 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = p, q
    k = _D * x1 * x2 * y1 * y2 % CURVE_PRIME
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, CURVE_PRIME)
    return x % CURVE_PRIME, (y1 * y2 + x1 * x2) * pow(1 - k, -1, CURVE_PRIME) % CURVE_PRIME


def times(k: int, p: Point) -> Point:
    total = (0, 1)
    while k:
        total, p, k = add(total, p) if k & 1 else total, add(p, p), k >> 1
    return total


def point(y: int) -> Point | None:
    """The one of even x with this y, if there is one (RFC 8032 section 5.1.3)."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, CURVE_PRIME) % CURVE_PRIME
    x = pow(square, (CURVE_PRIME + 3) // 8, CURVE_PRIME)
    if (x * x - square) % CURVE_PRIME:
        x = x * pow(2, (CURVE_PRIME - 1) // 4, CURVE_PRIME) % CURVE_PRIME
    if (x * x - square) % CURVE_PRIME:
        return None
    return (CURVE_PRIME - x if x & 1 else x, y)


def small() -> set[Point]:
    """The eight points of small order: multiples by the group's order of whatever points there are."""
    found: set[Point] = set()
    for y in range(2, 40):
        if (p := point(y)) is not None:
            low = times(GROUP_ORDER, p)
            found |= {times(k, low) for k in range(8)}
    return found


def encode(p: Point, *, y: int = 0, sign: int = 0) -> bytes:
    """RFC 8032 section 5.1.2; `y` is added, `sign` flips that of x."""
    return (p[1] + y | (p[0] & 1 ^ sign) << 255).to_bytes(32, "little")


SMALL = small()
WEAK = {encode(p) for p in SMALL} | {encode(p, sign=1) for p in SMALL if p[0] == 0}
SECOND = {encode(p, y=CURVE_PRIME) for p in SMALL if p[1] < 19} | {
    encode((p[0], y), y=CURVE_PRIME) for y in range(19) if (p := point(y)) is not None
}
"""y >= p: other bytes for a point that has an encoding already."""
NONE = [bytes(31), bytes(33), (2).to_bytes(32, "little"), b"\xff" * 32]
BAD = sorted(WEAK | SECOND, key=bytes.hex)


@pytest.fixture(autouse=True)
def _no_kept_keys() -> Iterator[None]:
    """What is imported without the check must not be found by the next test."""
    yield
    jws._imported.cache_clear()


def test_there_are_eight() -> None:
    assert len(SMALL) == 8
    assert {p[1] for p in SMALL} == jws._LOW_ORDER_Y
    assert len(BAD) >= 14


def test_honest_keys_pass() -> None:
    for _ in range(50):
        key = SigningKey.generate().public
        assert check_public(key) == key


@pytest.mark.parametrize("key", [*BAD, *NONE], ids=lambda key: key.hex()[:12])
def test_such_keys_are_refused_wherever_one_comes_in(key: bytes) -> None:
    with expect_problem(MALFORMED):
        check_public(key)
    with expect_problem(MALFORMED):
        public_from_jwk(jwk_x(key))
    with expect_problem(MALFORMED):
        verify(AUTHORITY.sign(task_config()), type(task_config()), key)
    if len(key) != 32:
        return
    config = task_config()
    with expect_problem(MALFORMED):
        replace(config, server=replace(config.server, key=key)).check()
    with expect_problem(MALFORMED):
        first, *others = config.committee.holders
        changed(config, holders=(replace(first, key=key), *others)).check()
    cnf = Cnf(Jwk(jwk_x(key)))
    with expect_problem(MALFORMED):
        check_credential(
            AUTHORITY.sign(Credential(fingerprint(AUTHORITY.public), "x", "client", NOW, NOW + 9, cnf)),
            AUTHORITY.public,
            "client",
            NOW,
        )


def test_under_a_key_of_small_order_one_signature_fits_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, an authority's key that is the neutral element: a task that nobody signed, for whoever trusts it."""
    neutral = (1).to_bytes(32, "little")
    nothing = neutral + bytes(32)
    head, payload, _ = AUTHORITY.sign(task_config()).split(".")
    token = f"{head}.{payload}.{jwk_x(nothing)}"
    with expect_problem(MALFORMED):
        Task.from_token(token, neutral)
    with monkeypatch.context() as off:
        off.setattr(jws, "check_public", lambda public, what="": public)
        assert Task.from_token(token, neutral).config.name == "har"


def test_nobody_enrols_a_key_that_everybody_can_sign_with(monkeypatch: pytest.MonkeyPatch) -> None:
    neutral = (1).to_bytes(32, "little")
    head, payload, _ = ALICE.sign(EnrollRequest("mallory", "client", neutral, NOW)).split(".")
    request = f"{head}.{payload}.{jwk_x(neutral + bytes(32))}"
    with expect_problem(MALFORMED):
        issue_credential(AUTHORITY, request, "client", now=NOW, days=1)
    with monkeypatch.context() as off:
        off.setattr(jws, "check_public", lambda public, what="": public)
        assert issue_credential(AUTHORITY, request, "client", now=NOW, days=1)


def test_a_signature_has_one_spelling() -> None:
    """S + L is refused by the library (RFC 8032 section 5.1.7): an update cannot be signed twice in other bytes."""
    head, payload, signature = AUTHORITY.sign(task_config()).split(".")
    raw = jws.urlsafe_b64decode(signature.encode())  # type: ignore[attr-defined]
    other = raw[:32] + (int.from_bytes(raw[32:], "little") + GROUP_ORDER).to_bytes(32, "little")
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(AUTHORITY.public).verify(other, f"{head}.{payload}".encode())
    with expect_problem(BAD_SIGNATURE):
        Task.from_token(f"{head}.{payload}.{jwk_x(other)}", AUTHORITY.public)
