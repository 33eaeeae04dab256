"""Requests made from the served OpenAPI document, by strangers and by enrolled parties: every answer is documented.

HUSHSUM_FUZZ_EXAMPLES sets how many requests each route gets from each party.
"""

from __future__ import annotations

import resource
import secrets
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.auth import AuthBase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from yarl import URL

from he_protocol import frames as framing
from he_protocol.errors import ProblemError
from he_protocol.identity.requests import prove_request
from he_server.http.openapi import PROBLEM, problems_of
from he_server.http.routes import ROUTES, TASK, Route
from tests.server.world import Person, World

from .mutation import mutated
from .running import Running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
MEMORY_KIB = 512 * 1024
"""By how much the peak of this process, server included, may grow over all requests of this file."""
ENDLESS = f"{TASK}/events"
BY_NAME = {f"{route.method} {route.path}": route for route in ROUTES}


class Proof(AuthBase):
    """Signs each request as the party that it is for would."""

    def __init__(self, world: World, person: Person) -> None:
        self.world = world
        self.person = person

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(
            prove_request(
                self.person.key,
                self.person.credential,
                audience=self.world.server_key.name,
                method=str(request.method),
                path=URL(str(request.url), encoded=True).raw_path_qs,
                now=self.world.clock(),
                jti=secrets.token_hex(16),
            )
        )
        return request


@pytest.fixture(scope="module")
def schema(running: Running) -> Any:
    for media in {route.takes.media for route in ROUTES if route.takes}:
        schemathesis.openapi.media_type(media, st.binary(max_size=200))
    document = requests.get(f"{running.url}/v1/openapi.json", timeout=10).json()
    return schemathesis.openapi.from_dict(document)


def names(running: Running) -> dict[str, list[str]]:
    """Values that lead past "not found", and some that nearly do, for every path parameter."""
    return {
        "task": [running.world.task.id],
        "update": [running.upload.id.hex(), running.upload.id.hex().upper()],
        "round": ["2", "2", "1", "3", "0", "-1", "99999999999999999999", "1e3", "%D9%A3"],
        "holder": [running.world.holders[0].name] * 3 + [running.world.holders[1].name],
        "phase": ["contribution", "commitment", "reveal", "confirmation"],
        "section": [part.name for part in running.world.task.body],
    }


def request(draw: st.DrawFn, running: Running, schema: Any, route: Route) -> Any:
    """One request to a route, most of its names known ones and most frames close to a good one."""
    case = draw(schema[route.path][route.method].as_strategy())
    known = names(running)
    for name in case.path_parameters or {}:
        endless = name == "task" and route.path == ENDLESS  # a known task's events never end
        if name in known and not endless and draw(st.integers(0, 4)):
            case.path_parameters[name] = draw(st.sampled_from(known[name]))
    if route.takes is not None and route.takes.media == framing.CONTENT_TYPE:
        frames = [running.upload.frame, running.share, running.task_frame, running.post]
        case.body = draw(st.one_of(st.sampled_from(frames), mutated(frames), mutated([f[:300] for f in frames])))
    return case


def send(route: Route, case: Any, running: Running, party: Person | None) -> Any:
    """Send a request and hold its answer against the document; each problem is one that the route names."""
    proof = Proof(running.world, party) if party else None
    response = case.call(base_url=running.url, auth=proof, timeout=10, allow_redirects=False)
    case.validate_response(response, checks=CHECKS)
    assert b"Traceback" not in response.content
    if response.status_code >= 400 and route.method != "HEAD":  # its answers have no body
        assert response.headers["content-type"] == [PROBLEM]
        refusal = ProblemError.from_document(response.content, response.status_code)
        assert refusal.problem.status == response.status_code
        assert refusal.problem in problems_of(route), f"{refusal.problem.slug} is not documented"
    return response


@pytest.mark.parametrize("name", BY_NAME)
def test_strangers_get_documented_answers(name: str, running: Running, schema: Any) -> None:
    route = BY_NAME[name]

    @settings(max_examples=max(1, settings.default.max_examples // 6))  # type: ignore[union-attr]
    @given(st.data())
    def run(data: st.DataObject) -> None:
        response = send(route, request(data.draw, running, schema, route), running, None)  # type: ignore[arg-type]
        assert route.access == "public" or response.status_code in {400, 401, 404}

    run()


@pytest.mark.parametrize("name", [name for name, route in BY_NAME.items() if route.access != "public"])
def test_parties_get_documented_answers(name: str, running: Running, schema: Any) -> None:
    route = BY_NAME[name]

    @settings(max_examples=max(1, settings.default.max_examples // 3))  # type: ignore[union-attr]
    @given(st.data())
    def run(data: st.DataObject) -> None:
        client, holder = running.client, running.world.holders[0]
        others = {"client": holder, "holder": client}
        fitting = holder if route.access == "holder" else client
        party = data.draw(st.sampled_from([fitting, fitting, fitting, others.get(route.access, holder)]))
        response = send(route, request(data.draw, running, schema, route), running, party)  # type: ignore[arg-type]
        if route.access in {"client", "holder"} and party.role != route.access:
            assert response.status_code in {401, 403, 404}

    run()


def test_the_server_is_well_after_all_that(running: Running) -> None:
    """Runs last: ready to work, no request answered by `internal`, memory bounded, and the round goes on."""
    assert requests.get(f"{running.url}/readyz", timeout=10).status_code == 200
    metrics = requests.get(f"{running.url}/metrics", timeout=10).text
    assert 'problem="internal"' not in metrics
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - running.memory < MEMORY_KIB
    running.do(running.world.open(2))
    assert running.do(running.world.round(2)).state == "published"
