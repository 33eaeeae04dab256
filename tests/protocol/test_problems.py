"""Refusals as RFC 9457 documents, and back."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import get_args

import pytest

from he_protocol import problems
from he_protocol.errors import FAMILIES, ProblemError, Unavailable, printable
from he_protocol.problems import (
    OVERLOADED,
    PROBLEMS,
    RETRIES,
    STALE_UPDATE,
    UNEXPECTED_ANSWER,
    WRONG_SIZE,
    Family,
    ProblemType,
)


def test_slugs_are_unique_urns_with_http_errors():
    named = [value for value in vars(problems).values() if isinstance(value, ProblemType)]
    assert len(named) == len(PROBLEMS)
    for slug, problem in PROBLEMS.items():
        assert problem.slug == slug
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", slug)
        assert problem.urn == f"urn:hushsum:problem:{slug}"
        assert 400 <= problem.status < 600
        assert problem.title


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_refusal_survives_the_wire(problem):
    sent = ProblemError(problem, "the détail", expected=3, got=(1, 2))
    document = sent.document()
    assert json.loads(document) == {
        "type": problem.urn,
        "title": problem.title,
        "status": problem.status,
        "detail": "the détail",
        "expected": "3",
        "got": "(1, 2)",
        "family": problem.family,
        "retry": problem.retry,
    }
    came = ProblemError.from_document(document, problem.status)
    assert came.problem is problem
    assert (came.detail, came.expected, came.got) == ("the détail", "3", "(1, 2)")
    assert str(came) == str(sent)


def test_the_text_says_what_was_expected_and_what_came():
    assert (
        str(ProblemError(WRONG_SIZE, "x", expected=1, got=2))
        == f"{WRONG_SIZE.title}: x (expected 1, got 2) [wrong-size]"
    )
    assert "(expected 1)" in str(ProblemError(WRONG_SIZE, "x", expected=1))
    assert "(got 2)" in str(ProblemError(WRONG_SIZE, "x", got=2))
    assert str(ProblemError(WRONG_SIZE, "x")) == f"{WRONG_SIZE.title}: x [wrong-size]"
    assert set(json.loads(ProblemError(WRONG_SIZE, "x").document())) == {
        "type",
        "title",
        "status",
        "detail",
        "family",
        "retry",
    }


def test_unknown_members_are_ignored_as_the_rfc_asks():
    body = json.dumps({**json.loads(ProblemError(WRONG_SIZE, "x").document()), "instance": "/a"}).encode()
    assert ProblemError.from_document(body, 400).problem is WRONG_SIZE


def test_a_later_releases_words_about_a_known_type_are_read_but_not_gone_by():
    document = json.loads(ProblemError(WRONG_SIZE, "x").document())
    told = ProblemError.from_document(json.dumps({**document, "family": "new", "retry": "tomorrow"}).encode(), 400)
    assert (told.problem.family, told.problem.retry) == ("invalid-message", "never")


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_every_type_has_a_family_and_says_when_to_try_again_and_what_to_do(problem):
    assert problem.family in FAMILIES
    assert problem.retry in RETRIES
    assert re.fullmatch(r"[A-Z].*[^.]\.", problem.what_to_do)
    assert not re.search(r"[.!?] [A-Z]", problem.what_to_do), "one sentence"
    error = ProblemError(problem, "x")
    assert type(error) is FAMILIES[problem.family]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (again.problem, str(again)) == (problem, str(error))


def test_every_family_and_every_answer_is_used():
    assert {problem.family for problem in PROBLEMS.values()} == FAMILIES.keys() == set(get_args(Family))
    assert {problem.retry for problem in PROBLEMS.values()} == set(RETRIES)


def test_a_family_is_caught_by_its_class_and_makes_no_other():
    with pytest.raises(Unavailable):
        raise ProblemError(OVERLOADED, "x")
    assert type(Unavailable(OVERLOADED, "x")) is Unavailable
    with pytest.raises(TypeError, match="stale-update is conflict, not Unavailable"):
        Unavailable(STALE_UPDATE, "x")


def slugs(holds):
    return {problem.slug for problem in PROBLEMS.values() if holds(problem)}


def test_what_each_party_does_by_itself():
    """The lists in words: a type that joins one of them changes what happens to somebody's update."""
    assert slugs(lambda p: p.transient) == {
        "request-timeout",
        "upload-locked",
        "too-many-uploads",
        "too-many-connections",
        "too-many-streams",
        "overloaded",
        "unexpected-answer",
        "database-unavailable",
        "shutting-down",
        "unreachable",
        "no-quorum",
        "disk-full",
    }
    assert slugs(lambda p: p.family == "unavailable") == slugs(lambda p: p.transient) | {"internal", "refused-between"}
    assert slugs(lambda p: p.may_pass) == slugs(lambda p: p.family == "unavailable") | {
        "already-in-round",
        "task-paused",
        "clock-skew",
        "wrong-state",
        "keys-not-ready",
        "not-certified",
        "checksum-mismatch",
    }
    assert slugs(lambda p: p.damage) == {
        "wrong-size",
        "residue-out-of-range",
        "digest-mismatch",
        "private-context",
        "wrong-share",
        "audit-broken",
    }
    assert slugs(lambda p: p.family == "task") == {
        "wrong-task",
        "wrong-epoch",
        "old-epoch",
        "ambiguous-task",
        "below-floor",
        "task-closed",
        "epoch-destroyed",
        "budget-exhausted",
    }
    assert slugs(lambda p: p.only_this_round) == slugs(lambda p: p.family in {"conflict", "unavailable"})
    assert slugs(lambda p: p.upload == "begin-anew") == {"not-found", "upload-expired", "digest-mismatch"}
    assert slugs(lambda p: p.upload == "ask-offset") == {"wrong-offset", "checksum-mismatch"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"type":"about:blank","title":"t","status":500,"detail":"d"}',
        b'{"type":"urn:hushsum:problem:wrong-size"}',
        b'{"type":"\xff","title":"t","status":1,"detail":"d"}',
    ],
)
def test_any_other_answer_is_unexpected(body):
    refusal = ProblemError.from_document(body, 502)
    assert refusal.problem is UNEXPECTED_ANSWER
    assert refusal.got == "HTTP 502"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("fine\r\nrefused: nothing", r"fine\r\nrefused: nothing"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("détail ✓ 数", "détail ✓ 数"),
    ],
)
def test_a_peers_text_cannot_steer_a_terminal(sent, shown):
    assert printable(sent) == shown
    came = ProblemError.from_document(ProblemError(WRONG_SIZE, sent, expected=sent, got=sent).document(), 400)
    assert came.detail == sent
    assert str(came) == f"{WRONG_SIZE.title}: {shown} (expected {shown}, got {shown}) [wrong-size]"
    assert str(came).isprintable()
