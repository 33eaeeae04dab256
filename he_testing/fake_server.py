"""A small server over real HTTP for the key holders' tests: it keeps what it gets, and lies when told to."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from he_holder.request import OpeningRequest as Asked
from he_party.identity import Identity
from he_protocol import documents, frames, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import message_kind, payload_hash, read_unverified
from he_protocol.messages import Credential, Manifest, SignedUpdate, UpdateHeader, Vote
from he_protocol.problems import NOT_FOUND, ProblemType
from he_protocol.task import Task

Posts = dict[str, tuple[str, bytes]]
View = Callable[[str, str, Posts], Posts]
"""(phase, name of the reader, honest posts) -> what that reader is shown."""
Hook = Callable[[web.Request], Awaitable[None]]


def problem(kind: ProblemType) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that always answers with this problem."""

    async def handler(_: web.Request) -> web.Response:
        return refusal(ProblemError(kind, "as the test asks"))

    return handler


def refusal(what: ProblemError) -> web.Response:
    return web.Response(status=what.problem.status, body=what.document(), content_type="application/problem+json")


def reader(request: web.Request) -> str:
    """Who asks, by the credential (not checked: these tests are about what holders check)."""
    token = request.headers["Authorization"].removeprefix("DPoP ")
    return read_unverified(token, Credential).sub


@dataclass
class FakeServer:
    """One task's board, rounds and shares. `replaced`: (method, path) -> handler instead of the honest one.

    committee: with it, the others have always said what a holder has said: it is asked to screen, to vote, and to
    release. stages: by round, what every holder is asked for instead. votes: by round, what is served as votes instead.
    """

    task: Task
    posts: defaultdict[str, Posts] = field(default_factory=lambda: defaultdict(dict))
    view: View = lambda phase, who, posts: posts
    committee: Sequence[Identity] = ()
    manifests: dict[int, str] = field(default_factory=dict)
    heads: dict[int, tuple[SignedUpdate, ...]] = field(default_factory=dict)
    stages: dict[int, documents.Stage] = field(default_factory=dict)
    votes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    answers: dict[tuple[int, str, str], str] = field(default_factory=dict)
    revocations: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    shares: dict[tuple[int, str], tuple[str, bytes]] = field(default_factory=dict)
    put_shares: list[tuple[int, str]] = field(default_factory=list)
    on_share: Hook | None = None
    on_answer: Hook | None = None
    replaced: dict[tuple[str, str], Callable[[web.Request], Awaitable[web.Response]]] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    port: int | None = None
    url: str = ""

    async def __aenter__(self) -> FakeServer:
        app = web.Application(client_max_size=1 << 26, middlewares=[self._intercept])
        at = f"/v1/tasks/{self.task.id}"
        app.add_routes(
            [
                web.get("/v1/tasks", self._tasks),
                web.get(paths.REVOCATIONS, self._revocations),
                web.get(at + "/board/{phase}", self._board),
                web.get(at + "/board/{phase}/{holder}", self._post),
                web.put(at + "/board/{phase}/{holder}", self._put_post),
                web.get(at + "/openings", self._pending),
                web.get(at + "/rounds/{number}/opening", self._opening),
                web.get(at + "/rounds/{number}/heads", self._heads),
                web.put(at + "/rounds/{number}/answers/{holder}", self._put_answer),
                web.get(at + "/rounds/{number}/key-sections", self._key_sections),
                web.put(at + "/rounds/{number}/shares/{holder}", self._put_share),
            ]
        )
        self._server = TestServer(app, port=self.port)
        await self._server.start_server()
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def offer(self, request: Asked, bodies: dict[str, bytes]) -> None:
        """A closed round that waits for key holders. `bodies`: c1 by update id in hex."""
        self.manifests[request.manifest.round] = request.manifest_token
        self.heads[request.manifest.round] = request.updates
        self.bodies |= bodies

    def withdraw(self, number: int) -> None:
        """The round is over."""
        del self.manifests[number]

    def stage(self, number: int, who: str) -> documents.Stage:
        """What a round asks of one holder."""
        if number in self.stages:
            return self.stages[number]
        if (number, who, "screening") not in self.answers:
            return "screen"
        return "release" if (number, who, "vote") in self.answers else "vote"

    def certificate(self, number: int) -> tuple[str, ...]:
        """Votes of the whole committee for a round's manifest."""
        token = self.manifests[number]
        manifest = read_unverified(token, Manifest)
        about = (self.task.hash, self.task.config.epoch, manifest.opening, payload_hash(token))
        return tuple(holder.key.sign(Vote(*about, holder.name)) for holder in self.committee)

    def count(self, method: str, path: str) -> int:
        """How often this was asked for."""
        return self.seen.count((method, path))

    async def until(self, ready: Callable[[], bool], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not ready():  # noqa: ASYNC110 - what is waited for sets no event
                await asyncio.sleep(0.005)

    @web.middleware
    async def _intercept(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        key = (request.method, request.path)
        self.seen.append(key)
        try:
            return await self.replaced.get(key, handler)(request)
        except KeyError:
            return refusal(ProblemError(NOT_FOUND, request.path))

    async def _tasks(self, _: web.Request) -> web.Response:
        status = documents.TaskStatus(self.task.id, self.task.config.name, self.task.token, False, 0, 1)
        return answer(documents.TaskList((status,)))

    async def _revocations(self, _: web.Request) -> web.Response:
        return answer(documents.Revoked(self.revocations))

    async def _board(self, request: web.Request) -> web.Response:
        phase = request.match_info["phase"]
        posts = self.view(phase, reader(request), dict(self.posts[phase]))
        entries = tuple(documents.BoardEntry(holder, message, len(body)) for holder, (message, body) in posts.items())
        return answer(documents.Board(phase, entries))

    async def _post(self, request: web.Request) -> web.Response:
        phase = request.match_info["phase"]
        posts = self.view(phase, reader(request), dict(self.posts[phase]))
        return web.Response(body=posts[request.match_info["holder"]][1])

    async def _put_post(self, request: web.Request) -> web.Response:
        head, body = frames.split(await request.read())
        posts = self.posts[request.match_info["phase"]]
        assert reader(request) == request.match_info["holder"]
        assert posts.setdefault(request.match_info["holder"], (head.decode(), bytes(body)))[0] == head.decode()
        return web.Response(status=201)

    async def _pending(self, request: web.Request) -> web.Response:
        who = reader(request)
        waiting = (documents.Waiting(n, self.stage(n, who)) for n in self.manifests if (n, who) not in self.shares)
        return answer(documents.PendingOpenings(tuple(waiting)))

    async def _opening(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        stage, manifest = self.stage(number, reader(request)), self.manifests[number]
        votes = self.votes.get(number, self.certificate(number) if stage == "release" else ())
        return answer(documents.Opening(stage, manifest, votes, self.revocations))

    async def _heads(self, request: web.Request) -> web.Response:
        return answer(documents.Heads(self.heads[int(request.match_info["number"])]))

    async def _put_answer(self, request: web.Request) -> web.Response:
        token = (await request.read()).decode()
        if self.on_answer is not None:
            await self.on_answer(request)
        number, holder = int(request.match_info["number"]), request.match_info["holder"]
        assert reader(request) == holder
        self.answers[number, holder, message_kind(token)] = token
        return web.Response(status=201)

    async def _key_sections(self, request: web.Request) -> web.Response:
        manifest = read_unverified(self.manifests[int(request.match_info["number"])], Manifest)
        return web.Response(body=b"".join(self.bodies[entry.update_id.hex()] for entry in manifest.updates))

    async def _put_share(self, request: web.Request) -> web.Response:
        head, body = frames.split(await request.read())
        if self.on_share is not None:
            await self.on_share(request)
        key = (int(request.match_info["number"]), request.match_info["holder"])
        self.put_shares.append(key)
        self.shares[key] = (head.decode(), bytes(body))
        return web.Response(status=201)


def answer(document: documents.Document) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def key_bodies(pairs: Sequence[tuple[SignedUpdate, bytes]]) -> dict[str, bytes]:
    """c1 by update id in hex, as the server serves them."""
    return {read_unverified(update.header, UpdateHeader).update_id.hex(): body for update, body in pairs}
