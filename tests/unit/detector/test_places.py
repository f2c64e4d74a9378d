"""A running detector that watches a cluster: findings name pods, and only who must wait waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.detector.cluster_server import ClusterServer, cluster_server
from tests.unit.detector.detector_parts import SECOND, SESSION, Client, batch, eventually, running, scan
from tests.unit.detector.kubernetes_objects import ID, OTHER_ID, UID, metadata, node, owner, pod, status
from vedette_detector.cluster import context as context_module
from vedette_detector.config import Settings
from vedette_detector.service import Service
from vedette_detector.store import Store
from vedette_events.encode import encode_event

LONG = 60.0
"""Seconds that a wait may take which a test ends itself."""


def in_pod(number: int, container_id: str = ID, uid: str = UID, cgroup: int = 77, **more: Any) -> bytes:
    """A batch in which a scanner is started in a pod's container."""
    path = f"/kubepods/burstable/pod{uid}/{container_id}"
    records = (
        encode_event("cgroup", cgroup=cgroup, time=SESSION + number * SECOND - 10, path=path),
        scan(number, cgroup=cgroup),
    )
    return batch(number, *records, **more)


@asynccontextmanager
async def in_cluster(settings: Settings, folder: Path) -> AsyncIterator[tuple[ClusterServer, Service, Client]]:
    """A detector that watches a cluster with the node ``node-a`` and the Deployment ``web``."""
    async with cluster_server(folder) as cluster:
        for name in ("node-a", "node-b"):
            cluster.put("nodes", node(name))
        cluster.put("replicasets", metadata("ReplicaSet", "web-6d5f7c9b8", "rs", owner("Deployment", "web", "d")))
        settings = replace(settings, kubernetes=str(cluster.server.kubeconfig()), cluster="prod-1")
        async with running(settings) as (service, client):
            yield cluster, service, client


async def test_a_finding_names_its_pod(settings: Settings, tmp_path: Path) -> None:
    async with in_cluster(settings, tmp_path) as (cluster, service, client):
        cluster.put("pods", pod(owners=(owner("ReplicaSet", "web-6d5f7c9b8", "rs"),)))
        await eventually(lambda: service.cluster is not None and len(service.cluster.pods), "the pod")
        assert (await client.post(in_pod(1)))[0] == 200
        (finding,) = service.store.list()
        assert (finding.resource_type, finding.resource_id) == ("EKSCluster", "prod/deployments/web/web")
        resource = finding.document["resource"]
        workload = resource["kubernetesDetails"]["kubernetesWorkloadDetails"]
        assert (workload["namespace"], workload["name"]) == ("prod", "web-6d5f7c9b8-x7k2p")
        assert resource["eksClusterDetails"]["arn"] == "arn:aws:eks:local:000000000000:cluster/prod-1"
        assert finding.document["vedette"]["kubernetes"]["workload"]["name"] == "web"
        _, document = await client.get("/v1/status")
        told = document["detector"]["kubernetes"]
        assert (told["synced"], told["connected"], told["away_since"], told["waits"]) == (True, True, None, 0)
        assert {w["resource"]: w["objects"] for w in told["watches"]} == {
            "pods": 1,
            "nodes": 2,
            "replicasets": 1,
            "jobs": 0,
        }
        assert [n.name for n in service.cluster_nodes() or ()] == ["node-a", "node-b"]
        _, text = await client.get("/metrics")
        assert 'vedette_kubernetes_objects{resource="nodes"} 2\n' in text
        assert 'vedette_kubernetes_lookups_total{pod="known"} 1\n' in text


async def test_only_the_session_of_a_finding_that_waits_is_held_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "WAIT_S", LONG)
    async with in_cluster(settings, tmp_path) as (cluster, service, client):
        waiting = asyncio.create_task(client.post(in_pod(1), batch(2)))
        context = service.cluster
        assert context is not None
        await eventually(lambda: context.statistics.waits, "the wait")
        later = asyncio.create_task(client.post(batch(3)))
        # Others pass: another node, and another session of the same one.
        assert (await client.post(batch(1, node="node-b")))[0] == 200
        elsewhere = batch(1, scan(1, cgroup=78), session=SESSION + SECOND)
        assert (await client.post(elsewhere))[0] == 200
        assert not waiting.done()
        assert not later.done()
        cluster.put("pods", pod())
        assert [entry["sequence"] for entry in (await waiting)[1]["acknowledged"]] == [1, 2]
        assert (await later)[0] == 200
        accounts = {(a.node, a.session): (a.batches, a.missing_batches) for a in service.store.accounts()}
        assert accounts == {
            ("node-a", SESSION): (3, 0),
            ("node-b", SESSION): (1, 0),
            ("node-a", SESSION + SECOND): (1, 0),
        }
        (finding,) = [f for f in service.store.list() if f.resource_type == "EKSCluster"]
        assert "missing" not in finding.document["vedette"]["kubernetes"]
        assert context.statistics.waits == 1


async def test_a_finding_goes_out_without_its_pod_when_none_comes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "WAIT_S", 0.05)
    async with in_cluster(settings, tmp_path) as (_, service, client):
        assert (await client.post(in_pod(1)))[0] == 200
        (finding,) = service.store.list()
        assert finding.resource_type == "EKSCluster"
        assert finding.document["vedette"]["kubernetes"]["missing"] == [
            "pod: the API server has reported no pod with this UID"
        ]
        # It was waited for once; what comes next of the same container is not held back again.
        assert (await client.post(in_pod(2)))[0] == 200
        assert service.cluster is not None
        assert service.cluster.statistics.waits == 1
        assert [f.count for f in service.store.list()] == [2]


async def test_a_container_that_is_not_told_apart_yet_is_waited_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "WAIT_S", LONG)
    async with in_cluster(settings, tmp_path) as (cluster, service, client):
        cluster.put("pods", pod("p", "web", "log", statuses=()))
        context = service.cluster
        assert context is not None
        await eventually(lambda: len(context.pods), "the pod")
        waiting = asyncio.create_task(client.post(in_pod(1, OTHER_ID)))
        await eventually(lambda: context.statistics.waits, "the wait")
        cluster.put("pods", pod("p", "web", "log", statuses=(status("web", ID), status("log", OTHER_ID))))
        assert (await waiting)[0] == 200
        (finding,) = service.store.list()
        assert finding.resource_id == "prod/pods/p/log"


async def test_a_detector_that_stops_first_makes_the_findings_that_wait(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "WAIT_S", 0.5)
    async with in_cluster(settings, tmp_path) as (_, service, client):
        waiting = asyncio.create_task(client.post(in_pod(1)))
        assert service.cluster is not None
        context = service.cluster
        await eventually(lambda: context.statistics.waits, "the wait")
    await asyncio.gather(waiting, return_exceptions=True)
    store = Store(settings.database_url, read_only=True)
    assert [a.last_sequence for a in store.accounts()] == [1]
    assert [f.resource_type for f in store.list()] == ["EKSCluster"]
    store.close()


async def test_an_api_server_that_is_away_stops_nothing(settings: Settings, tmp_path: Path) -> None:
    async with in_cluster(settings, tmp_path) as (cluster, service, client):
        cluster.put("pods", pod())
        context = service.cluster
        assert context is not None
        await eventually(lambda: len(context.pods), "the pod")
        cluster.hang_up.set()
        await cluster.server.stop()
        await eventually(lambda: not context.state()["watches"][0]["connected"], "the server to be away")
        assert (await client.post(in_pod(1)))[0] == 200
        (finding,) = service.store.list()
        assert finding.resource_type == "EKSCluster"
        told = (await client.get("/v1/status"))[1]["detector"]["kubernetes"]
        assert (told["connected"], told["watches"][0]["objects"]) == (False, 1)
        assert told["watches"][0]["error"].startswith("ApiUnreachable: ")


async def test_a_detector_starts_while_the_api_server_is_away(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette_detector.service.FIRST_LIST_S", 0.2)
    monkeypatch.setattr(context_module, "WAIT_S", 0.05)
    async with cluster_server(tmp_path) as cluster:
        kubeconfig = cluster.server.kubeconfig()
        await cluster.server.stop()
        async with running(replace(settings, kubernetes=str(kubeconfig))) as (service, client):
            assert service.cluster_nodes() is None
            assert (await client.post(in_pod(1)))[0] == 200
            (finding,) = service.store.list()
            missing = finding.document["vedette"]["kubernetes"]["missing"]
            assert missing[0].startswith("pod: the list of pods has not been read yet (it has not answered since 20")
