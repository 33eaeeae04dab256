"""Refusals as RFC 9457 documents, and back."""

from __future__ import annotations

import json
import re

import pytest

from he_protocol import problems
from he_protocol.problems import PROBLEMS, UNEXPECTED_ANSWER, WRONG_SIZE, ProblemError, ProblemType, printable


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
    assert set(json.loads(ProblemError(WRONG_SIZE, "x").document())) == {"type", "title", "status", "detail"}


def test_unknown_members_are_ignored_as_the_rfc_asks():
    body = json.dumps({**json.loads(ProblemError(WRONG_SIZE, "x").document()), "instance": "/a"}).encode()
    assert ProblemError.from_document(body, 400).problem is WRONG_SIZE


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
