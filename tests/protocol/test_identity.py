"""Credentials and request proofs: every test shows the attack that its check stops."""

from __future__ import annotations

import pytest

from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS, Party, check_credential, check_signed, utc
from he_protocol.identity.jws import fingerprint
from he_protocol.identity.requests import PROOF_SECONDS, check_request, prove_request
from he_protocol.messages import Cnf, Credential, EnrollRequest, Jwk, RequestProof, UpdateHeader
from he_protocol.problems import (
    BAD_SIGNATURE,
    EXPIRED_CREDENTIAL,
    FOREIGN_CREDENTIAL,
    MALFORMED,
    NOT_ADDRESSED,
    UNAUTHENTICATED,
    UNKNOWN_FIELD,
    WRONG_ROLE,
)
from he_testing.problems import expect_problem

from .parties import ALICE, AUTHORITY, BOB, MALLORY, NOW, credential

PARTY = Party("alice", "client", ALICE.public)
TARGET = {"audience": "aggregator", "method": "PUT", "path": "/v1/tasks"}


def test_a_credential_names_its_owner():
    assert check_credential(credential(ALICE, "alice"), AUTHORITY.public, "client", NOW) == PARTY
    assert check_credential(credential(ALICE, "alice"), AUTHORITY.public, None, NOW) == PARTY


def test_a_self_made_credential_is_refused():
    """Mallory copies the authority's issuer name and signs herself."""
    with expect_problem(BAD_SIGNATURE):
        check_credential(credential(MALLORY, "alice", issuer=MALLORY), AUTHORITY.public, "client", NOW)


def test_another_authoritys_credential_is_refused_by_name():
    token = credential(ALICE, "alice", issuer=BOB, iss=BOB.public)
    with expect_problem(FOREIGN_CREDENTIAL, fingerprint(BOB.public)):
        check_credential(token, AUTHORITY.public, "client", NOW)


def test_an_issuer_name_is_checked_even_under_the_authoritys_signature():
    """The authority's key used under another name: a credential of a roster that is not this one."""
    with expect_problem(FOREIGN_CREDENTIAL):
        check_credential(credential(ALICE, "alice", iss=BOB.public), AUTHORITY.public, "client", NOW)


@pytest.mark.parametrize("now", [NOW - CLOCK_SKEW_SECONDS - 1, NOW + 3600, NOW + 10**9])
def test_a_credential_outside_its_time_is_refused(now):
    """With dates that a person can read, from which it is plain what to do."""
    with expect_problem(EXPIRED_CREDENTIAL, f"expected from {utc(NOW)} until {utc(NOW + 3600)}, got {utc(now)}"):
        check_credential(credential(ALICE, "alice"), AUTHORITY.public, "client", now)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1970-01-01T00:00:00Z"), (1e30, "1e+30"), (-(1 << 62), str(-(1 << 62)))]
)
def test_a_time_that_no_calendar_has_is_shown_as_it_is(seconds, text):
    assert utc(seconds) == text


@pytest.mark.parametrize("now", [NOW - CLOCK_SKEW_SECONDS, NOW, NOW + 3599.9])
def test_a_credential_at_the_edges_of_its_time_is_accepted(now):
    assert check_credential(credential(ALICE, "alice"), AUTHORITY.public, "client", now) == PARTY


@pytest.mark.parametrize("role", ["holder", "server"])
def test_a_client_does_not_pass_for_anybody_else(role):
    with expect_problem(WRONG_ROLE, role):
        check_credential(credential(ALICE, "alice"), AUTHORITY.public, role, NOW)


def test_what_else_the_authority_signed_is_no_credential():
    """An enrollment request has other fields; a request proof with a credential's payload has another `typ`."""
    with expect_problem(UNKNOWN_FIELD):
        check_credential(
            AUTHORITY.sign(EnrollRequest("alice", "client", ALICE.public, NOW)), AUTHORITY.public, "client", NOW
        )

    class Draft(Credential, frozen=True):
        """Same fields, another kind."""

    draft = Draft(fingerprint(AUTHORITY.public), "alice", "client", NOW, NOW + 9, Cnf(Jwk(fingerprint(ALICE.public))))
    with expect_problem(BAD_SIGNATURE, "not of this kind"):
        check_credential(AUTHORITY.sign(draft), AUTHORITY.public, "client", NOW)


@pytest.mark.parametrize("x", ["", "AAAA", "not base64!"])
def test_a_credential_needs_a_whole_key(x):
    token = AUTHORITY.sign(Credential(fingerprint(AUTHORITY.public), "alice", "client", NOW, NOW + 9, Cnf(Jwk(x))))
    with expect_problem(MALFORMED):
        check_credential(token, AUTHORITY.public, "client", NOW)


def header(name: str) -> UpdateHeader:
    return UpdateHeader(bytes(32), 1, bytes(16), name, 0, NOW, ())


def test_a_signed_message_names_its_signer():
    assert check_signed(ALICE.sign(header("alice")), UpdateHeader, PARTY, "client") == header("alice")


def test_nobody_speaks_for_somebody_else():
    """Alice signs with her own good key, but names Bob: without the check his update would be replaced."""
    with expect_problem(NOT_ADDRESSED, "bob"):
        check_signed(ALICE.sign(header("bob")), UpdateHeader, PARTY, "client")


def test_nobody_signs_for_somebody_else():
    with expect_problem(BAD_SIGNATURE):
        check_signed(MALLORY.sign(header("alice")), UpdateHeader, PARTY, "client")


def prove(key=ALICE, token=None, **changes):
    headers = prove_request(
        key, token or credential(ALICE, "alice", iat=NOW - 1000), **{**TARGET, "now": NOW, "jti": "nonce-1", **changes}
    )
    return headers["Authorization"], headers["DPoP"]


def admit(authorization, proof, now=NOW, **changes):
    return check_request(authorization, proof, **{"authority": AUTHORITY.public, **TARGET, "now": now, **changes})


def test_a_request_is_proved_by_its_sender():
    party, claims = admit(*prove())
    assert party == PARTY
    assert claims.jti == "nonce-1"
    assert (claims.exp - claims.iat, claims.iat) == (PROOF_SECONDS, NOW)


def test_a_stolen_credential_proves_nothing():
    """The server, or anybody who saw a request, has the credential, but not the key named in it."""
    with expect_problem(BAD_SIGNATURE):
        admit(*prove(MALLORY))


@pytest.mark.parametrize(
    "change", [{"audience": "other"}, {"method": "GET"}, {"method": "put"}, {"path": "/v1/tasks/x"}]
)
def test_a_proof_is_good_for_one_request_only(change):
    with expect_problem(UNAUTHENTICATED, "another request"):
        admit(*prove(), **change)
    assert admit(*prove(**change), **change)[0] == PARTY


def test_a_proof_does_not_lend_itself_to_another_credential():
    """Alice is a client under one credential and a holder under another, with one key."""
    _, proof = prove()
    other = credential(ALICE, "alice-holds", "holder")
    with expect_problem(BAD_SIGNATURE, "another credential"):
        admit(f"DPoP {other}", proof)


@pytest.mark.parametrize("age", [-CLOCK_SKEW_SECONDS - 1, PROOF_SECONDS, PROOF_SECONDS + 1, 3000])
def test_an_old_or_early_proof_is_refused(age):
    with expect_problem(UNAUTHENTICATED, "not fresh"):
        admit(*prove(), now=NOW + age)


@pytest.mark.parametrize("age", [-CLOCK_SKEW_SECONDS, 0, PROOF_SECONDS - 1])
def test_a_proof_within_the_skew_is_fresh(age):
    assert admit(*prove(), now=NOW + age)[0] == PARTY


def test_a_proof_cannot_be_made_to_last():
    """Replay protection remembers ids for as long as proofs live: a proof of a day would outlive it."""
    authorization, proof = prove()
    claims = admit(authorization, proof)[1]
    for lifetime, good in ((PROOF_SECONDS, True), (PROOF_SECONDS + 1, False), (86400, False)):
        longer = ALICE.sign(
            RequestProof(claims.aud, claims.htm, claims.htu, NOW, NOW + lifetime, claims.jti, claims.ath)
        )
        if good:
            assert admit(authorization, longer)[0] == PARTY
        else:
            with expect_problem(UNAUTHENTICATED, "not fresh"):
                admit(authorization, longer)


def test_both_headers_are_needed():
    authorization, proof = prove()
    token = authorization.split(" ")[1]
    for first, second in (
        ("", proof),
        (authorization, ""),
        (f"Bearer {token}", proof),
        ("DPoP", proof),
        ("DPoP ", proof),
        (token, proof),
    ):
        with expect_problem(UNAUTHENTICATED, "needs the headers"):
            admit(first, second)


def test_the_credential_inside_a_request_is_checked():
    with expect_problem(EXPIRED_CREDENTIAL):
        admit(*prove(now=NOW + 4000), now=NOW + 4000)
    with expect_problem(BAD_SIGNATURE):
        admit(*prove(MALLORY, credential(MALLORY, "alice", issuer=MALLORY)))
