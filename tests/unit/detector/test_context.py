"""Lookups of pods as watches bring them: at once, after a wait, in vain, and while the API server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.detector.cluster_server import ClusterServer, client_of, cluster_server
from tests.unit.detector.detector_parts import eventually
from tests.unit.detector.kubernetes_objects import (
    ID,
    NODE,
    OTHER_ID,
    THIRD_ID,
    UID,
    metadata,
    node,
    owner,
    pod,
    reference,
    status,
)
from vedette_detector.cluster import context as context_module
from vedette_detector.cluster import watch as watch_module
from vedette_detector.cluster.api import METADATA, METADATA_LIST
from vedette_detector.cluster.context import KubernetesContext, PodContext, Unknown, Wanted

RS = owner("ReplicaSet", "web-6d5f7c9b8", "rs")
LONG = 30.0
"""Seconds that a wait may take which is ended by an event: no test takes them."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(watch_module, "LONGEST_PAUSE_S", 0.05)


@asynccontextmanager
async def known(folder: Path, *pods: dict[str, Any]) -> AsyncIterator[tuple[ClusterServer, KubernetesContext]]:
    """A context that watches a cluster with these pods, one node and the Deployment ``web``."""
    async with cluster_server(folder) as cluster, client_of(cluster) as api:
        cluster.put("nodes", node())
        cluster.put("replicasets", metadata("ReplicaSet", "web-6d5f7c9b8", "rs", owner("Deployment", "web", "d")))
        for one in pods:
            cluster.put("pods", one)
        context = KubernetesContext(api)
        await context.start(LONG)
        try:
            yield cluster, context
        finally:
            await context.stop()


async def test_what_is_known_is_told_at_once(tmp_path: Path) -> None:
    async with known(tmp_path, pod(owners=(RS,))) as (cluster, context):
        found = await context.lookup(reference(), NODE)
        assert isinstance(found, PodContext)
        assert (found.pod.name, found.container.name, found.workload.kind, found.workload.name) == (
            "web-6d5f7c9b8-x7k2p",
            "web",
            "Deployment",
            "web",
        )
        assert found.node is not None
        assert (found.node.name, found.missing, found.gone) == (NODE, (), False)
        assert context.statistics.waits == 0
        assert context.synced
        assert [n.name for n in context.nodes()] == [NODE]
        await eventually(lambda: len({name for name, _ in cluster.watches}) == 4, "all watches")
        assert cluster.accepted["replicasets"] == cluster.accepted["jobs"] == {METADATA, METADATA_LIST}


async def test_a_pod_that_appears_ends_the_wait(tmp_path: Path) -> None:
    async with known(tmp_path) as (cluster, context):
        looking = asyncio.create_task(context.lookup(reference(), NODE, wait_s=LONG))
        await eventually(lambda: context.statistics.waits, "the wait")
        cluster.put("pods", pod("another", uid="another"))
        cluster.put("pods", pod(owners=(RS,)))
        found = await looking
        assert isinstance(found, PodContext)
        assert (found.container.name, found.missing) == ("web", ())
        assert context.statistics.waits_in_vain == 0


async def test_a_container_that_is_reported_ends_the_wait(tmp_path: Path) -> None:
    two = pod("p", "web", "log", statuses=())
    async with known(tmp_path, two) as (cluster, context):
        looking = asyncio.create_task(context.lookup(reference(), NODE, wait_s=LONG))
        await eventually(lambda: context.statistics.waits, "the wait")
        cluster.put("pods", pod("p", "web", "log", statuses=(status("web"), status("log", ID))))
        found = await looking
        assert isinstance(found, PodContext)
        assert (found.container.name, found.container.inferred) == ("log", False)


async def test_an_owner_that_is_reported_ends_the_wait(tmp_path: Path) -> None:
    job = owner("Job", "nightly-1", "job", "batch/v1")
    async with known(tmp_path, pod(owners=(job,))) as (cluster, context):
        looking = asyncio.create_task(context.lookup(reference(), NODE, wait_s=LONG))
        await eventually(lambda: context.statistics.waits, "the wait")
        cluster.put("jobs", metadata("Job", "nightly-1", "job", owner("CronJob", "nightly", "c", "batch/v1")))
        found = await looking
        assert isinstance(found, PodContext)
        assert (found.workload.kind, found.workload.name, found.missing) == ("CronJob", "nightly", ())


async def test_what_was_waited_for_in_vain_is_told_as_missing_and_not_waited_for_again(tmp_path: Path) -> None:
    async with known(tmp_path, pod("p", "web", "log", statuses=())) as (_, context):
        both = [Wanted(reference(), NODE), Wanted(reference(OTHER_ID, "unseen"), NODE)]
        assert context.pending(both) == both
        await context.settled(both, 0.05)
        assert (context.statistics.waits, context.statistics.waits_in_vain) == (1, 1)
        assert context.pending(both) == []
        found, unseen = (context.find(w.container, w.node) for w in both)
        assert isinstance(found, PodContext)
        assert found.missing == ("container: the kubelet has not reported its id; it may be one of: web, log",)
        assert isinstance(unseen, Unknown)
        assert (unseen.reason, unseen.message) == (
            "NotSeen",
            "pod: the API server has reported no pod with this UID",
        )
        await context.lookup(*(both[1].container, NODE), wait_s=LONG)
        assert context.statistics.waits == 1


async def test_a_node_that_reports_another_s_pod_does_not_keep_it_from_being_waited_for(tmp_path: Path) -> None:
    async with known(tmp_path) as (_, context):
        await context.lookup(reference(), "node-b", wait_s=0.01)
        assert context.pending([Wanted(reference(), "node-b"), Wanted(reference(), NODE)]) == [
            Wanted(reference(), NODE)
        ]


async def test_a_container_that_was_waited_for_in_vain_is_known_when_it_comes(tmp_path: Path) -> None:
    async with known(tmp_path) as (cluster, context):
        assert isinstance(await context.lookup(reference(), NODE, wait_s=0.01), Unknown)
        cluster.put("pods", pod())
        await eventually(lambda: isinstance(context.find(reference(), NODE), PodContext), "the pod")


async def test_nothing_is_waited_for_while_the_api_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "AWAY_S", 0.0)
    async with known(tmp_path, pod()) as (cluster, context):
        cluster.hang_up.set()
        await cluster.server.stop()
        await eventually(lambda: not any(w["connected"] for w in context.state()["watches"]), "the server to be away")
        unseen = await context.lookup(reference(ID, "unseen"), NODE, wait_s=LONG)
        assert context.statistics.waits == 0
        assert isinstance(unseen, Unknown)
        assert unseen.message.startswith(
            "pod: the API server has reported no pod with this UID (it has not answered since 20"
        )
        assert isinstance(context.find(reference(), NODE), PodContext)
        state = context.state()
        assert (state["synced"], state["connected"]) == (True, False)
        assert state["away_since"].endswith("Z")


async def test_before_the_first_list_it_is_said_so(tmp_path: Path) -> None:
    async with cluster_server(tmp_path) as cluster, client_of(cluster) as api:
        context = KubernetesContext(api)
        found = context.find(reference(), NODE)
        assert isinstance(found, Unknown)
        assert found.reason == "NotSynced"
        assert found.message.startswith("pod: the list of pods has not been read yet (it has not answered since ")
        assert context.state()["synced"] is False


@pytest.mark.parametrize(
    ("container", "from_node", "expected"),
    [
        pytest.param(reference(ID, None), NODE, "web", id="a path without pod, the container known"),
        pytest.param(reference(THIRD_ID, None), NODE, "NotInPod", id="another runtime's container"),
        pytest.param(reference(ID), "node-b", "OtherNode", id="another node speaks for it"),
        pytest.param(reference(ID, None, reference(ID, UID)), NODE, "web", id="the node is a container itself"),
        pytest.param(
            reference(THIRD_ID, None, reference(ID, UID)), NODE, "web", id="the node is a container of an unknown id"
        ),
        pytest.param(reference(THIRD_ID, None, reference(ID, UID)), "node-b", "NotInPod", id="named like another's"),
        pytest.param(reference(THIRD_ID, None, reference(ID, "no")), NODE, "NotInPod", id="named like no pod"),
    ],
)
async def test_whose_container_it_is(tmp_path: Path, container: Any, from_node: str, expected: str) -> None:
    async with known(tmp_path, pod()) as (_, context):
        found = await context.lookup(container, from_node, wait_s=0.01)
        assert (found.reason if isinstance(found, Unknown) else found.container.name) == expected
        if container.inner is not None and isinstance(found, PodContext):
            assert (found.outside, found.container_id) == (container.container_id, ID)


async def test_a_deleted_pod_is_told_as_such(tmp_path: Path) -> None:
    async with known(tmp_path, pod(owners=(RS,))) as (cluster, context):
        cluster.delete("pods", UID)
        cluster.delete("replicasets", "rs")
        await eventually(lambda: len(context.pods) == 0, "the deletion")
        found = await context.lookup(reference(), NODE)
        assert isinstance(found, PodContext)
        assert (found.gone, found.container.name, found.workload.name) == (True, "web", "web")


async def test_an_unknown_node_is_missing(tmp_path: Path) -> None:
    async with known(tmp_path, pod(node="node-b")) as (_, context):
        found = await context.lookup(reference(), "node-b")
        assert isinstance(found, PodContext)
        assert found.missing == ("node: the API server has reported no node of this name",)


async def test_a_pod_s_node_is_told_to_who_knows_its_uid(tmp_path: Path) -> None:
    async with known(tmp_path, pod("p"), pod("q", uid="pending", node="")) as (_, context):
        asked = [("prod", "p", UID), ("prod", "p", "other"), ("dev", "p", UID), ("prod", "q", "pending")]
        assert [context.node_of_pod(*one) for one in asked] == [NODE, None, None, None]


async def test_one_deadline_for_all(tmp_path: Path) -> None:
    async with known(tmp_path) as (_, context):
        many = [Wanted(reference(f"{n:064x}", f"unseen-{n}"), NODE) for n in range(500)]
        await context.settled(many, 0.05)
        assert (context.statistics.waits, context.pending(many)) == (1, [])
