"""List and watch against a real HTTP server that behaves, and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.detector.api_server import failure
from tests.unit.detector.cluster_server import ClusterServer, client_of, cluster_server
from tests.unit.detector.detector_parts import eventually
from tests.unit.detector.kubernetes_objects import pod
from vedette_detector.cluster import watch as watch_module
from vedette_detector.cluster.context import PODS
from vedette_detector.cluster.watch import Watch


class Names:
    """A sink that keeps names."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.calls: list[str] = []

    def put(self, given: dict[str, Any]) -> None:
        if given["metadata"]["name"] == "poison":
            raise KeyError("poison")
        self.names[given["metadata"]["uid"]] = given["metadata"]["name"]
        self.calls.append(f"put {given['metadata']['name']}")

    def remove(self, given: dict[str, Any]) -> None:
        self.names.pop(given["metadata"]["uid"], None)
        self.calls.append(f"remove {given['metadata']['name']}")

    def retain(self, uids: set[str]) -> None:
        self.names = {u: n for u, n in self.names.items() if u in uids}
        self.calls.append(f"retain {len(uids)}")

    def __len__(self) -> int:
        return len(self.names)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(watch_module, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(watch_module, "PAGE", 2)


@asynccontextmanager
async def watching(folder: Path, *names: str) -> AsyncIterator[tuple[ClusterServer, Names, Watch]]:
    """A watch of pods that has begun with these."""
    async with cluster_server(folder) as cluster, client_of(cluster) as api:
        for name in names:
            cluster.put("pods", pod(name, uid=name))
        sink = Names()
        watch = Watch(api, PODS, sink)
        task = asyncio.create_task(watch.run())
        try:
            yield cluster, sink, watch
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_lists_in_pages_then_follows(tmp_path: Path) -> None:
    async with watching(tmp_path, "a", "b", "c", "d", "e") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        assert sink.calls == ["put a", "put b", "put c", "put d", "put e", "retain 5"]
        assert [token.partition("-")[2] for _, token in cluster.lists] == ["", "2", "4"]
        assert cluster.watches == [("pods", 15)]
        cluster.put("pods", pod("f", uid="f"))
        cluster.put("pods", pod("a", uid="a"))
        cluster.delete("pods", "b")
        await eventually(lambda: sink.calls[-1] == "remove b", "the changes")
        assert sink.calls[-3:] == ["put f", "put a", "remove b"]
        assert (watch.state.synced, watch.state.connected, watch.state.events, watch.objects) == (True, True, 3, 5)


async def test_goes_on_from_a_bookmark_without_listing_again(tmp_path: Path) -> None:
    async with watching(tmp_path, "a") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        for _ in range(5):
            cluster.bookmark("pods")
        await eventually(lambda: watch._version == str(cluster.version), "the bookmark")
        cluster.hang_up.set()
        await eventually(lambda: watch.state.failures, "the hang-up")
        cluster.hang_up.clear()
        cluster.put("pods", pod("b", uid="b"))
        await eventually(lambda: "b" in sink.names, "what came while it was away")
        assert len(cluster.lists) == 1
        assert {since for _, since in cluster.watches[1:]} == {16}
        assert watch.state.events == 1


async def test_an_old_version_is_listed_again_and_what_is_gone_goes(tmp_path: Path) -> None:
    async with watching(tmp_path, "a", "b") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.forget_unseen("pods", "a")
        cluster.oldest = cluster.version
        cluster.hang_up.set()
        await eventually(lambda: watch.state.failures, "the hang-up")
        cluster.hang_up.clear()
        await eventually(lambda: list(sink.names) == ["b"], "the new list")
        assert watch.state.lists == 2


async def test_a_version_that_becomes_too_old_during_the_watch(tmp_path: Path) -> None:
    async with watching(tmp_path, "a") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.version += 1
        cluster.send("pods", "ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
        await eventually(lambda: watch.state.lists == 2, "the new list")
        assert list(sink.names) == ["a"]
        assert watch.state.failures == 0


async def test_a_list_that_expires_half_way_begins_again(tmp_path: Path) -> None:
    async with cluster_server(tmp_path) as cluster, client_of(cluster) as api:
        cluster.expire_continue = 2
        for name in "abcde":
            cluster.put("pods", pod(name, uid=name))
        sink = Names()
        watch = Watch(api, PODS, sink)
        task = asyncio.create_task(watch.run())
        await asyncio.wait_for(watch.synced.wait(), 20)
        assert sorted(sink.names) == list("abcde")
        assert [c for c in sink.calls if c.startswith("retain")] == ["retain 5"]
        task.cancel()


async def test_a_server_that_is_away_costs_nothing_that_is_known(tmp_path: Path) -> None:
    async with watching(tmp_path, "a", "b") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.hang_up.set()
        await cluster.server.stop()
        await eventually(lambda: watch.state.failures > 3, "failures")
        state = watch.state
        assert sorted(sink.names) == ["a", "b"]
        assert (state.synced, state.connected) == (True, False)
        assert state.away_since >= state.contact > 0
        assert state.error.startswith("ApiUnreachable: ")
        cluster.hang_up.clear()
        cluster.put("pods", pod("c", uid="c"))
        await cluster.server.start()
        await eventually(lambda: "c" in sink.names, "what came while it was away")
        assert (state.connected, state.away_since, state.error, state.lists) == (True, 0.0, "", 1)


async def test_a_watch_without_news_counts_as_connected(tmp_path: Path) -> None:
    async with watching(tmp_path, "a") as (cluster, _, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.hang_up.set()
        await cluster.server.stop()
        await eventually(lambda: not watch.state.connected, "the server to be away")
        cluster.hang_up.clear()
        await cluster.server.start()
        await eventually(lambda: watch.state.connected, "the server to be back")
        assert (watch.state.lists, watch.state.events, watch.state.away_since) == (1, 0, 0.0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failure(403, "Forbidden", "pods is forbidden"), "Forbidden: the API server answers 403: pods is forbidden"),
        (failure(429, "TooManyRequests", "later", {"Retry-After": "1"}), "TooManyRequests: the API server answers 429"),
        (failure(500, "InternalError", "\x1b[2J"), "InternalError: the API server answers 500: \\x1b[2J"),
    ],
)
async def test_a_refusal_is_told_and_tried_again(tmp_path: Path, answer: Any, error: str) -> None:
    async with cluster_server(tmp_path) as cluster, client_of(cluster) as api:
        cluster.refuse["pods"] = answer
        watch = Watch(api, PODS, Names())
        task = asyncio.create_task(watch.run())
        await eventually(lambda: watch.state.failures >= 1, "a failure")
        assert watch.state.error.startswith(error)
        assert not watch.state.synced
        cluster.refuse.clear()
        await asyncio.wait_for(watch.synced.wait(), 20)
        assert watch.state.error == ""
        task.cancel()


async def test_one_object_that_cannot_be_read_does_not_cost_the_others(tmp_path: Path) -> None:
    async with watching(tmp_path, "a", "poison", "b") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.put("pods", pod("c", uid="c"))
        await eventually(lambda: "c" in sink.names, "the next")
        assert sorted(sink.names) == ["a", "b", "c"]
        assert watch.state.unreadable == 1


@pytest.mark.parametrize("given", [{}, {"metadata": None}, {"metadata": {"uid": 7}}, {"metadata": {"name": "x"}}])
async def test_an_event_without_an_object_is_passed_over(tmp_path: Path, given: dict[str, Any]) -> None:
    async with watching(tmp_path, "a") as (cluster, sink, watch):
        await eventually(lambda: cluster.watches, "a watch")
        cluster.version += 1
        cluster.send("pods", "ADDED", given)
        cluster.put("pods", pod("b", uid="b"))
        await eventually(lambda: "b" in sink.names, "the next")
        assert (watch.state.events, watch.state.failures) == (1, 0)
