"""The Kubernetes client against a server that speaks the protocol over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.api_server import (
    ApiServer,
    Authority,
    answering,
    api_server,
    failure,
    streaming,
)
from vedette_detector.cluster import api as api_module
from vedette_detector.cluster.api import (
    METADATA_LIST,
    ApiError,
    ApiUnreachableError,
    KubernetesApi,
    WatchEvent,
    iter_lines,
    parse_event,
    status_error,
)
from vedette_detector.errors import ConfigError


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with api_server(tmp_path / "api") as running:
        yield running


def in_pod(server: ApiServer) -> KubernetesApi:
    return KubernetesApi(environ=server.environ, token_file=server.token_file, ca_file=server.ca_file)


def test_a_detector_without_kubernetes_does_not_load_the_library() -> None:
    code = "import sys, vedette_detector.main, vedette_detector.cluster.api; print('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


async def test_get_in_a_pod_and_by_kubeconfig(server: ApiServer) -> None:
    server.handlers["GET", "/api/v1/nodes"] = answering({"kind": "NodeList", "items": []})
    for client in (in_pod(server), KubernetesApi(str(server.kubeconfig()))):
        async with client as api:
            assert await api.get("/api/v1/nodes", {"labelSelector": "a=b, c"}) == {"kind": "NodeList", "items": []}
            assert api.host == f"https://127.0.0.1:{server.port}"
    assert server.requests == [("GET", "/api/v1/nodes?labelSelector=a%3Db,+c")] * 2


async def test_post_sends_json(server: ApiServer) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/json"
        return web.json_response({"was": await request.json()}, status=201)

    server.handlers["POST", "/x"] = echo
    async with in_pod(server) as api:
        assert await api.post("/x", {"kind": "TokenReview"}) == {"was": {"kind": "TokenReview"}}


async def test_the_accept_header_can_ask_for_metadata_only(server: ApiServer) -> None:
    server.handlers["GET", "/api/v1/pods"] = answering({"kind": "PartialObjectMetadataList"})
    async with in_pod(server) as api:
        await api.get("/api/v1/pods", accept=METADATA_LIST)
    assert server.headers[0]["Accept"] == "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


async def test_a_list_comes_in_pages(server: ApiServer) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        at = int(request.query.get("continue", "0"))
        metadata = {"resourceVersion": "7"} | ({"continue": str(at + 2)} if at < 4 else {})
        assert request.query["limit"] == "2"
        return web.json_response({"items": [at, at + 1], "metadata": metadata})

    server.handlers["GET", "/api/v1/pods"] = page
    async with in_pod(server) as api:
        pages = [p async for p in api.pages("/api/v1/pods", limit=2)]
    assert [p["items"] for p in pages] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason", "wait"),
    [
        (404, {"reason": "NotFound", "message": "no"}, {}, "NotFound", 0.0),
        (429, {"reason": "TooManyRequests", "details": {"retryAfterSeconds": 3}}, {}, "TooManyRequests", 3.0),
        (429, {"reason": "TooManyRequests"}, {"Retry-After": "7"}, "TooManyRequests", 7.0),
        (503, {"reason": "not camel case"}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "Http503", 0.0),
        (500, {"reason": 7, "message": 8, "details": []}, {"Retry-After": "99999999999"}, "Http500", 0.0),
        (502, [1], {}, "Http502", 0.0),
    ],
)
def test_what_an_error_says(status: int, body: Any, headers: dict[str, str], reason: str, wait: float) -> None:
    error = status_error(status, json.dumps(body).encode(), headers)
    assert (error.status, error.reason, error.retry_after_s) == (status, reason, wait)


def test_an_error_page_of_a_proxy_is_an_error_too() -> None:
    error = status_error(502, b"<html>\x1b[2J", {})
    assert (error.reason, error.message) == ("Http502", "the API server answers 502: no message")
    assert "\x1b" not in status_error(403, json.dumps({"message": "\x1b[2J"}).encode(), {}).message


async def test_an_error_of_the_server_is_raised(server: ApiServer) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return failure(429, "TooManyRequests", "slow down", {"Retry-After": "2"})

    server.handlers["GET", "/busy"] = busy
    async with in_pod(server) as api:
        with pytest.raises(ApiError) as absent:
            await api.get("/absent")
        assert (absent.value.status, absent.value.reason) == (404, "NotFound")
        with pytest.raises(ApiError) as refused:
            await api.get("/busy")
        assert (refused.value.reason, refused.value.retry_after_s) == ("TooManyRequests", 2.0)


async def test_answers_are_bounded_and_must_be_objects(server: ApiServer) -> None:
    server.handlers["GET", "/large"] = answering({"x": "y" * 10_000})
    server.handlers["GET", "/list"] = answering([1])
    server.handlers["GET", "/deep"] = streaming(b"[" * 100_000)
    async with in_pod(server) as api:
        for path, reason in (("/large", "AnswerTooLarge"), ("/list", "MalformedAnswer"), ("/deep", "MalformedAnswer")):
            with pytest.raises(ApiError) as error:
                await api.get(path, max_bytes=200_000 if path == "/deep" else 1000)
            assert (error.value.status, error.value.reason) == (200, reason)


async def test_a_rotated_token_is_read_again_when_the_old_one_is_refused(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "CONFIGURE_AGAIN_S", 0.0)
    server.handlers["GET", "/x"] = answering({})
    async with in_pod(server) as api:
        await api.get("/x")
        server.token = "another-token"
        with pytest.raises(ApiError) as error:
            await api.get("/x")
        assert error.value.reason == "Unauthorized"
        server.token_file.write_text("another-token\n")
        await api.get("/x")
    assert len(server.requests) == 5


async def test_a_rotated_authority_is_read_again(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "CONFIGURE_AGAIN_S", 0.0)
    server.handlers["GET", "/x"] = answering({})
    async with in_pod(server) as api:
        await api.get("/x")
        await server.stop()
        server.authority = Authority("another authority")
        await server.start()
        with pytest.raises(ApiUnreachableError, match="certificate verify failed"):
            await api.get("/x")
        server.ca_file.write_bytes(server.authority.pem)
        await api.get("/x")


async def test_a_server_that_is_away_is_unreachable_and_comes_back(server: ApiServer) -> None:
    server.handlers["GET", "/x"] = answering({})
    async with in_pod(server) as api:
        await api.get("/x")
        await server.stop()
        with pytest.raises(ApiUnreachableError):
            await api.get("/x")
        await server.start()
        await api.get("/x")


async def test_a_server_that_does_not_answer_is_unreachable(server: ApiServer) -> None:
    forever = asyncio.Event()
    server.handlers["GET", "/x"] = streaming(b"{", then=forever.wait)
    async with in_pod(server) as api:
        with pytest.raises(ApiUnreachableError, match="no answer in time"):
            await api.get("/x", timeout_s=0.2)
    forever.set()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not a kubeconfig"), ("a: [", "while parsing"), ("{}", "current-context"), (None, "no such file")],
)
async def test_a_kubeconfig_that_is_none_is_a_setting_that_is_wrong(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        await KubernetesApi(str(path)).open()


async def test_outside_of_a_pod_in_cluster_is_wrong() -> None:
    with pytest.raises(ConfigError, match="Service host/port is not set"):
        await KubernetesApi(environ={}).open()


# Watches


def event(kind: str, name: str) -> bytes:
    return json.dumps({"type": kind, "object": {"metadata": {"name": name}}}).encode() + b"\n"


async def test_a_watch_gives_events_as_they_come(server: ApiServer) -> None:
    more = asyncio.Event()
    second = event("MODIFIED", "b")
    server.handlers["GET", "/api/v1/pods"] = streaming(event("ADDED", "a"), second[:10], second[10:], then=more.wait)
    async with in_pod(server) as api:
        seen = []
        async for got in api.watch("/api/v1/pods", {"resourceVersion": "7"}, timeout_s=60):
            seen.append(got)
            if len(seen) == 2:
                more.set()
    assert seen == [
        WatchEvent("ADDED", {"metadata": {"name": "a"}}),
        WatchEvent("MODIFIED", {"metadata": {"name": "b"}}),
    ]
    assert server.requests == [
        ("GET", "/api/v1/pods?allowWatchBookmarks=true&resourceVersion=7&watch=1&timeoutSeconds=60")
    ]


async def test_a_watch_can_be_left_early(server: ApiServer) -> None:
    forever = asyncio.Event()
    server.handlers["GET", "/w"] = streaming(event("ADDED", "a"), then=forever.wait)
    async with in_pod(server) as api, contextlib.aclosing(api.watch("/w")) as events:
        async for got in events:
            assert got.type == "ADDED"
            break
    forever.set()


async def test_a_watch_that_is_too_old_says_410(server: ApiServer) -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old resource version"}}
    server.handlers["GET", "/w"] = streaming(json.dumps(gone).encode() + b"\n")
    async with in_pod(server) as api:
        with pytest.raises(ApiError) as error:
            await anext(api.watch("/w"))
    assert (error.value.status, error.value.reason) == (410, "Expired")


async def test_a_refused_watch_and_one_whose_server_dies(server: ApiServer) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event("ADDED", "a"))
        assert request.transport is not None
        request.transport.abort()
        return response

    server.handlers["GET", "/w"] = cut
    async with in_pod(server) as api:
        with pytest.raises(ApiError) as refused:
            await anext(api.watch("/absent"))
        assert refused.value.reason == "NotFound"
        events = api.watch("/w")
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(ApiUnreachableError):
            await anext(events)


async def test_a_line_without_end_is_given_up(server: ApiServer) -> None:
    server.handlers["GET", "/w"] = streaming(*[b"x" * 1000] * 50)
    async with in_pod(server) as api:
        with pytest.raises(ApiError) as error:
            await anext(api.watch("/w", max_line=10_000))
        assert error.value.reason == "AnswerTooLarge"
        with pytest.raises(ApiUnreachableError, match="within a line"):
            await anext(api.watch("/w"))


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    async def chunks() -> AsyncIterator[bytes]:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            yield stream[begin:end]

    async def collect() -> list[bytes]:
        return [line async for line in iter_lines(chunks(), 100)]

    assert asyncio.run(collect()) == [line for line in lines if line]


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.text(max_size=8), st.text(max_size=8)).map(lambda d: json.dumps(d).encode())
)
def test_any_line_is_an_event_or_an_error(line: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert isinstance(parse_event(line), WatchEvent)
