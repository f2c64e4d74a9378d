"""Admission by TokenReview: whose token, for which node, and what holds while the API server is away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.api_server import answering, api_server, failure
from tests.unit.detector.token_parts import AGENTS, FAR, OPERATOR, Reviewer, encoded, jwt
from vedette_detector.auth import Identity
from vedette_detector.cluster import token_review
from vedette_detector.cluster.api import KubernetesApi
from vedette_detector.cluster.token_review import (
    NODE_NAME,
    PATH,
    Bound,
    Claims,
    TokenReviews,
    parse_claims,
    read_review,
)
from vedette_detector.errors import AuthenticationError, AuthorizationError, DetectorError, IdentityUnavailableError

NOW = 1_790_000_000.0


@dataclass
class Clock:
    """Monotonic and wall clock in one, moved by the test."""

    passed: float = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.passed

    def wall(self) -> float:
        return NOW + self.passed


@dataclass
class Request:
    """What an authenticator looks at of a request."""

    headers: dict[str, str]
    remote: str | None = "198.51.100.1"


@dataclass
class World:
    """Reviews that ask a real server over TLS."""

    reviewer: Reviewer
    reviews: TokenReviews
    clock: Clock

    async def ask(self, token: str, remote: str = "198.51.100.1") -> Identity:
        return await self.reviews.authenticate(Request({"Authorization": f"Bearer {token}"}, remote))  # type: ignore[arg-type]

    async def refusal(self, token: str, remote: str = "198.51.100.1") -> tuple[str, str]:
        with pytest.raises(DetectorError) as raised:
            await self.ask(token, remote)
        return type(raised.value).__name__, raised.value.reason


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_server(tmp_path / "api") as server:
        reviewer = Reviewer(server)
        server.handlers["POST", PATH] = reviewer.review
        api = KubernetesApi(environ=server.environ, token_file=server.token_file, ca_file=server.ca_file)
        clock = Clock()
        async with api:
            reviews = TokenReviews(
                api,
                audience="vedette",
                agents="vedette-system:vedette-agent",
                admins=("vedette-system:vedette-operator",),
                cache_s=60.0,
                grace_s=600.0,
                clock=clock.monotonic,
                wall=clock.wall,
            )
            yield World(reviewer, reviews, clock)
            await reviews.close()


async def test_an_agent_may_speak_for_the_node_of_its_token_only(world: World) -> None:
    identity = await world.ask(world.reviewer.know(jwt(), node="node-a"))
    assert identity == Identity("agent of node node-a", node="node-a", admin=False)
    identity.may_speak_for("node-a")
    with pytest.raises(AuthorizationError) as raised:
        identity.may_speak_for("node-b")
    assert raised.value.reason == "WrongNode"


async def test_an_administrator_delivers_for_no_node(world: World) -> None:
    identity = await world.ask(world.reviewer.know(jwt(OPERATOR), OPERATOR))
    assert identity == Identity(OPERATOR, node="", admin=True)


async def test_of_an_older_api_server_the_pod_of_the_token_is_asked_for(world: World) -> None:
    handlers = world.reviewer.server.handlers
    pod = "/api/v1/namespaces/vedette-system/pods/vedette-agent-x"
    handlers["GET", pod] = answering({"metadata": {"uid": "u-1"}, "spec": {"nodeName": "node-of-pod"}})
    token = world.reviewer.know(jwt(), pod="vedette-agent-x", uid="u-1")
    assert (await world.ask(token)).node == "node-of-pod"
    # Another pod of that name; a pod that is gone; one that was not scheduled; a pod's name that is a path.
    other = world.reviewer.know(jwt(mark="other"), pod="vedette-agent-x", uid="u-2")
    assert await world.refusal(other) == ("AuthorizationError", "PodGone")
    gone = world.reviewer.know(jwt(mark="gone"), pod="vedette-agent-y", uid="u-1")
    assert await world.refusal(gone) == ("AuthorizationError", "PodGone")
    handlers["GET", pod] = answering({"metadata": {"uid": "u-1"}, "spec": {}})
    pending = world.reviewer.know(jwt(mark="pending"), pod="vedette-agent-x", uid="u-1")
    assert await world.refusal(pending) == ("AuthorizationError", "PodGone")
    odd = world.reviewer.know(jwt(mark="odd"), pod="../../nodes", uid="u-1")
    assert await world.refusal(odd) == ("AuthorizationError", "PodGone")


async def test_a_pod_that_cannot_be_asked_for_now_is_asked_for_again(world: World) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        return failure(500, "InternalError", "etcd")

    world.reviewer.server.handlers["GET", "/api/v1/namespaces/vedette-system/pods/vedette-agent-x"] = broken
    token = world.reviewer.know(jwt(), pod="vedette-agent-x", uid="u-1")
    assert await world.refusal(token) == ("IdentityUnavailableError", "IdentityUnavailable")


@pytest.mark.parametrize(
    ("token", "error", "reason"),
    [
        ("garbage", "AuthenticationError", "MalformedToken"),
        ("a.b.c", "AuthenticationError", "MalformedToken"),
        (jwt() + "\u202e", "AuthenticationError", "MalformedToken"),
        ("a." + "b" * 20_000 + ".c", "AuthenticationError", "MalformedToken"),
        (jwt(audience=("https://kubernetes.default.svc",)), "AuthenticationError", "WrongAudience"),
        (jwt(audience=None), "AuthenticationError", "WrongAudience"),
        (jwt(expires=NOW - 61), "AuthenticationError", "TokenExpired"),
        (jwt("system:serviceaccount:default:default"), "AuthorizationError", "WrongServiceAccount"),
        (jwt(mark="unknown"), "AuthenticationError", "UnknownToken"),
        (jwt(expires=NOW - 30), "AuthenticationError", "TokenExpired"),
    ],
    ids=lambda v: "" if "." in v else v[:20],
)
async def test_a_token_that_is_not_an_agents_is_refused(world: World, token: str, error: str, reason: str) -> None:
    assert await world.refusal(token) == (error, reason)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz"])
async def test_without_a_token_nobody_is_asked(world: World, header: str | None) -> None:
    request = Request({} if header is None else {"Authorization": header})
    with pytest.raises(AuthenticationError) as raised:
        await world.reviews.authenticate(request)  # type: ignore[arg-type]
    assert raised.value.reason == "NoToken"
    assert world.reviewer.asked == 0


async def test_what_a_token_says_of_itself_admits_nobody(world: World) -> None:
    """The claims say agent; the API server says who it is."""
    default = world.reviewer.know(jwt(), "system:serviceaccount:default:default", node="node-a")
    assert await world.refusal(default) == ("AuthorizationError", "WrongServiceAccount")
    human = world.reviewer.know(jwt(mark="human"), "system:admin")
    assert await world.refusal(human) == ("AuthorizationError", "WrongServiceAccount")
    unbound = world.reviewer.know(jwt(mark="unbound"))
    assert await world.refusal(unbound) == ("AuthorizationError", "UnboundToken")


@pytest.mark.parametrize("audiences", [[], ["other"]])
async def test_an_api_server_that_does_not_know_audiences_admits_nobody(world: World, audiences: list[str]) -> None:
    world.reviewer.audiences = audiences
    token = world.reviewer.know(jwt(), node="node-a")
    assert await world.refusal(token) == ("AuthenticationError", "WrongAudience")


async def test_an_admission_is_remembered_for_the_time_set_and_no_longer_than_the_token(world: World) -> None:
    long = world.reviewer.know(jwt(), node="node-a")
    short = world.reviewer.know(jwt(expires=NOW + 20), node="node-a")
    for moment, asked in ((0, 2), (19, 2), (59, 2), (61, 3), (120, 3), (122, 4)):
        world.clock.passed = moment
        await world.ask(long)
        if moment < 20:
            await world.ask(short)
        assert world.reviewer.asked == asked, moment
    del world.reviewer.users[short]
    assert await world.refusal(short) == ("AuthenticationError", "TokenExpired")


async def test_a_refusal_is_remembered_briefly(world: World) -> None:
    token = jwt()
    assert await world.refusal(token) == ("AuthenticationError", "UnknownToken")
    assert await world.refusal(token) == ("AuthenticationError", "UnknownToken")
    assert world.reviewer.asked == 1
    world.reviewer.know(token, node="node-a")
    world.clock.passed = token_review.NEGATIVE_S + 0.1
    assert (await world.ask(token)).node == "node-a"


async def test_a_pod_that_is_gone_is_refused_once_its_admission_is_stale(world: World) -> None:
    token = world.reviewer.know(jwt(), node="node-a")
    await world.ask(token)
    del world.reviewer.users[token]
    world.clock.passed = 59
    await world.ask(token)
    world.clock.passed = 61
    assert await world.refusal(token) == ("AuthenticationError", "UnknownToken")


async def test_many_requests_with_one_token_make_one_review(world: World) -> None:
    token = world.reviewer.know(jwt(), node="node-a")
    world.reviewer.hold = asyncio.Event()
    asking = [asyncio.create_task(world.ask(token, f"198.51.100.{n}")) for n in range(50)]
    while not world.reviewer.asked:  # noqa: ASYNC110 - the server is another party
        await asyncio.sleep(0.01)
    asking[0].cancel()
    world.reviewer.hold.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {a.node for a in answers[1:] if isinstance(a, Identity)} == {"node-a"}
    assert world.reviewer.asked == 1


async def test_reviews_at_once_are_bounded_and_one_address_shuts_out_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_review, "MAX_WAITING", 20)
    world.reviewer.hold = asyncio.Event()
    flood = [asyncio.create_task(world.refusal(jwt(mark=f"f{n}"), "203.0.113.1")) for n in range(100)]
    others = [asyncio.create_task(world.refusal(jwt(mark=f"o{n}"), f"198.51.100.{n}")) for n in range(100)]
    while world.reviewer.asked < token_review.MAX_UNDER_REVIEW:  # noqa: ASYNC110 - the server is another party
        await asyncio.sleep(0.01)
    assert world.reviewer.asked == token_review.MAX_UNDER_REVIEW
    world.reviewer.hold.set()
    answers = [await asyncio.gather(*tasks) for tasks in (flood, others)]
    overloaded = ("IdentityUnavailableError", "Overloaded")
    assert [a.count(overloaded) for a in answers] == [100 - token_review.MAX_WAITING_PER_PEER, 100 - 12]
    assert world.reviewer.asked == 20
    # Whoever was sent away comes again.
    assert await world.refusal(jwt(mark="f99"), "203.0.113.1") == ("AuthenticationError", "UnknownToken")


# The API server is away


@pytest.mark.parametrize(
    "answer",
    [
        lambda: failure(500, "InternalError", "etcd"),
        lambda: failure(403, "Forbidden", "cannot create resource tokenreviews"),
        lambda: failure(429, "TooManyRequests", "slow down"),
        lambda: web.json_response({"kind": "Status"}),
        lambda: web.Response(text="<html>"),
    ],
    ids=["500", "403", "429", "not-a-review", "html"],
)
async def test_an_unknown_token_comes_again_when_it_cannot_be_reviewed(
    world: World, answer: Callable[[], web.Response]
) -> None:
    world.reviewer.failing = answer
    token = world.reviewer.know(jwt(), node="node-a")
    kind, _ = await world.refusal(token)
    assert kind == "IdentityUnavailableError"
    world.reviewer.failing = None
    assert (await world.ask(token)).node == "node-a"


async def test_while_the_api_server_is_away_known_tokens_are_admitted_until_their_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    long = world.reviewer.know(jwt(), node="node-a")
    short = world.reviewer.know(jwt(expires=NOW + 300), node="node-b")
    await world.ask(long)
    await world.ask(short)
    await world.reviewer.server.stop()
    world.clock.passed = 299
    assert (await world.ask(long)).node == "node-a"
    assert (await world.ask(short)).node == "node-b"
    assert await world.refusal(jwt(mark="new")) == ("IdentityUnavailableError", "IdentityUnavailable")
    status = world.reviews.describe()
    assert (status["admitted_without_review"], status["away_since_ns"]) == (2, int((NOW + 299) * 1e9))
    assert status["error"].startswith("ApiUnreachable: ")
    world.clock.passed = 310
    assert (await world.ask(long)).node == "node-a"
    assert await world.refusal(short) == ("IdentityUnavailableError", "IdentityUnavailable")
    world.clock.passed = 601
    assert await world.refusal(long) == ("IdentityUnavailableError", "IdentityUnavailable")
    await world.reviewer.server.start()
    assert (await world.ask(long)).node == "node-a"
    assert world.reviews.describe()["error"] is None
    said = [r.getMessage() for r in caplog.records if r.name == token_review.__name__]
    assert sum("tokens cannot be reviewed" in m for m in said) == 2
    assert said[-1] == "the API server reviews tokens again, after 302 s"


async def test_an_api_server_that_hangs_delays_a_known_token_briefly_and_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_review, "PATIENCE_S", 0.05)
    token = world.reviewer.know(jwt(), node="node-a")
    await world.ask(token)
    world.reviewer.hold = asyncio.Event()
    world.clock.passed = 61
    for _ in range(5):
        assert (await world.ask(token)).node == "node-a"
    assert world.reviews.counts.unreviewed == 1
    assert world.reviewer.asked == 2
    world.reviewer.hold.set()


async def test_a_review_that_takes_too_long_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_review, "REVIEW_TIMEOUT_S", 0.1)
    world.reviewer.hold = asyncio.Event()
    assert await world.refusal(jwt()) == ("IdentityUnavailableError", "IdentityUnavailable")
    world.reviewer.hold.set()


async def test_tokens_are_in_no_log_and_no_message(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = world.reviewer.know(jwt(mark="secretsecretsecret"), node="node-a")
    messages = []

    async def note() -> None:
        try:
            await world.ask(token)
        except DetectorError as error:
            messages.append(str(error))

    # The API server's own message repeats what it was sent.
    world.reviewer.failing = lambda: failure(400, "Invalid", f"spec.token: Invalid value: {token!r}")
    await note()
    world.reviewer.failing = None
    world.reviewer.users.clear()
    await note()
    assert len(messages) == 2
    shown = [*messages, caplog.text, json.dumps(world.reviews.describe()), repr(vars(world.reviews))]
    assert [s for s in shown if "secretsecret" in s or token[:40] in s] == []


async def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_review, "MAX_KNOWN", 3)
    monkeypatch.setattr(token_review, "MAX_REFUSED", 3)
    for number in range(8):
        await world.ask(world.reviewer.know(jwt(mark=f"good{number}"), node="node-a"))
        await world.refusal(jwt(mark=f"bad{number}"))
    assert world.reviews.describe()["known_tokens"] == 3
    before = world.reviewer.asked
    await world.ask(jwt(mark="good7"))
    await world.refusal(jwt(mark="bad7"))
    assert world.reviewer.asked == before
    await world.ask(jwt(mark="good0"))
    assert world.reviewer.asked == before + 1


# Pure parts


def test_claims_of_a_projected_token() -> None:
    assert parse_claims(jwt(expires=1_790_003_600)) == Claims(AGENTS, ("vedette",), 1_790_003_600.0)
    assert parse_claims(jwt(audience="vedette")) == Claims(AGENTS, ("vedette",), FAR)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"exp": 1e999}',
        b'{"exp": NaN}',
        b'{"exp": -Infinity}',
        b'{"exp": true}',
        b'{"exp": "1790000000"}',
        b'{"exp": ' + b"9" * 400 + b"}",
        b'{"exp": [1]}',
        b"{}",
    ],
)
def test_an_end_that_is_no_time_is_none(payload: bytes) -> None:
    assert parse_claims(f"a.{encoded(payload)}.b") == Claims("", (), None)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 6000, b'{"exp": ' + b"9" * 5000 + b"}", b"{", b'"x"']
)
def test_what_is_no_token_has_no_claims(payload: bytes) -> None:
    assert parse_claims(f"a.{encoded(payload)}.b") is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_CLAIMS = st.dictionaries(st.sampled_from(["sub", "aud", "exp", "x"]), _JSON).map(encoded)


@given(st.text() | st.binary(max_size=200).map(lambda b: f"a.{encoded(b)}.c") | _CLAIMS.map(lambda p: f"h.{p}.s"))
def test_any_token_has_claims_of_the_right_types_or_none(token: str) -> None:
    claims = parse_claims(token)
    if claims is not None:
        assert isinstance(claims.subject, str)
        assert all(isinstance(a, str) for a in claims.audiences)
        assert claims.expires_at is None or abs(claims.expires_at) < 2**53


@given(
    st.dictionaries(st.sampled_from(["kind", "status"]), _JSON)
    | st.fixed_dictionaries(
        {
            "kind": st.just("TokenReview"),
            "status": st.fixed_dictionaries(
                {"authenticated": st.just(True), "audiences": st.just(["vedette"]) | _JSON},
                optional={"user": st.fixed_dictionaries({"username": st.text() | _JSON, "extra": _JSON}) | _JSON},
            ),
        }
    )
)
def test_any_answer_is_somebody_or_an_error(answer: dict[str, Any]) -> None:
    try:
        bound = read_review(answer, "vedette")
    except (AuthenticationError, IdentityUnavailableError):
        return
    assert isinstance(bound, Bound)
    assert isinstance(bound.node, str)


@pytest.mark.parametrize("values", [[], ["a", "b"], "a", [1], None])
def test_a_node_that_is_not_one_name_is_none(values: Any) -> None:
    user = {"username": AGENTS, "extra": {NODE_NAME: values}}
    status = {"authenticated": True, "audiences": ["vedette"], "user": user}
    assert read_review({"kind": "TokenReview", "status": status}, "vedette").node == ""
