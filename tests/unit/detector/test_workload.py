"""Findings of pods: GuardDuty's EKSCluster resource, our additions, identity, and the pods that a finding lists."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.detector.botocore_shapes import problems
from tests.unit.detector.kubernetes_objects import ID, NODE, OTHER_ID, UID, node, owner, pod, reference, status
from tests.unit.detector.test_findings import HOST, NOW, OURS, REDACTOR, detection
from vedette_detector.cluster.context import PodContext, Unknown
from vedette_detector.cluster.index import match_container
from vedette_detector.cluster.nodes import parse_node
from vedette_detector.cluster.pods import ObjectRef, parse_pod
from vedette_detector.engine.detection import ContainerRef
from vedette_detector.findings import catalog
from vedette_detector.findings.build import Identity, build
from vedette_detector.findings.model import MAX_PODS, FindingUpdate, collect, fold_document
from vedette_detector.findings.resource import InCluster, describe
from vedette_detector.findings.workload import Cluster, plural

CLUSTER = Cluster("prod-1", "arn:aws:eks:eu-central-1:111122223333:cluster/prod-1")
WEB = ObjectRef("Deployment", "web", "d", "apps/v1")
HARDENED = {
    "name": "web",
    "image": "registry.example/team/web:1",
    "volumeMounts": [{"name": "logs", "mountPath": "/logs"}],
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


def inside(
    given: dict[str, Any] | None = None,
    container_id: str = ID,
    workload: ObjectRef | None = WEB,
    executable: str = "",
    **more: Any,
) -> InCluster:
    """What Kubernetes tells of a process in a pod."""
    found = parse_pod(given or pod())
    match, _ = match_container(found, container_id, executable)
    top = workload or ObjectRef("Pod", found.name, found.uid, "v1")
    known = parse_node(node())
    return InCluster(CLUSTER, known, PodContext(found, match, container_id, top, known, **more))


def made(told: InCluster, container: ContainerRef | None = None, host: str = NODE, **more: Any) -> FindingUpdate:
    identifier = told.found.container_id if isinstance(told.found, PodContext) else ID
    reached = container or reference(identifier)
    where = replace(HOST, node=host)
    resource = describe(reached, where, None, told)
    found = detection(container=reached, host_process=False, **more)
    return build(found, resource, where, Identity(detector_id="d" * 32, cluster="prod-1"), REDACTOR)


@pytest.mark.parametrize("name", sorted(catalog.BY_NAME))
def test_every_type_in_a_pod_is_a_guardduty_finding(name: str) -> None:
    document = fold_document(None, made(inside(), finding_type=name, title="", description=""), NOW)
    assert problems(document, allowed=OURS) == []
    assert document["resource"]["resourceType"] == "EKSCluster"


def test_the_resource_of_a_pod() -> None:
    given = pod("web-1", HARDENED, "log", spec={"hostPID": True})
    resource = made(inside(given)).document["resource"]
    assert resource["eksClusterDetails"] == {"name": "prod-1", "arn": CLUSTER.arn, "status": "ACTIVE"}
    workload = resource["kubernetesDetails"]["kubernetesWorkloadDetails"]
    containers = workload.pop("containers")
    assert workload == {
        "name": "web-1",
        "type": "pods",
        "uid": UID,
        "namespace": "prod",
        "hostNetwork": False,
        "hostIPC": False,
        "hostPID": True,
        "serviceAccountName": "web",
        "volumes": [{"name": "kube-api-access-x7k2p"}, {"name": "logs", "hostPath": {"path": "/var/log"}}],
    }
    assert containers[0] == {
        "containerRuntime": "containerd",
        "id": ID,
        "name": "web",
        "image": "registry.example/team/web:1",
        "imagePrefix": "registry.example/team",
        "volumeMounts": [{"name": "logs", "mountPath": "/logs"}],
        "securityContext": {"privileged": False, "allowPrivilegeEscalation": False},
    }
    assert [c["name"] for c in containers] == ["web", "log"]
    instance = resource["instanceDetails"]
    assert instance == {
        "instanceId": "i-0123456789abcdef0",
        "instanceType": "m7i.large",
        "availabilityZone": "eu-central-1a",
        "networkInterfaces": [
            {
                "privateDnsName": "ip-10-0-0-5.internal",
                "privateIpAddress": "10.0.0.5",
                "ipv6Addresses": ["2001:db8::5"],
                "publicIp": "198.51.100.5",
            }
        ],
    }


def test_the_container_that_it_is_about_comes_first() -> None:
    told = inside(pod("p", "web", "log", statuses=(status("web", ID), status("log", OTHER_ID))), OTHER_ID)
    document = made(told).document
    containers = document["resource"]["kubernetesDetails"]["kubernetesWorkloadDetails"]["containers"]
    assert [(c["name"], c["id"]) for c in containers] == [("log", OTHER_ID), ("web", ID)]


def test_what_guardduty_has_no_field_for() -> None:
    given = pod("web-1", HARDENED, statuses=(status("web", ID, restarts=3),), annotations={"team": "payments"})
    ours = made(inside(given)).document["vedette"]["kubernetes"]
    assert ours["workload"] == {
        "kind": "Deployment",
        "type": "deployments",
        "name": "web",
        "uid": "d",
        "apiVersion": "apps/v1",
    }
    assert ours["container"] == {
        "id": ID,
        "name": "web",
        "kind": "container",
        "imageId": f"registry.example/team/web@sha256:{'1' * 64}",
        "restartCount": 3,
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "seccompProfile": "RuntimeDefault",
            "capabilitiesAdded": ["NET_BIND_SERVICE"],
            "capabilitiesDropped": ["ALL"],
        },
    }
    assert ours["pod"] == {
        "name": "web-1",
        "uid": UID,
        "createdAt": "2026-09-21T13:59:58Z",
        "phase": "Running",
        "ip": "10.88.0.7",
        "labels": {"app": "web", "pod-template-hash": "6d5f7c9b8"},
        "annotations": {"team": "payments"},
    }
    assert ours["namespace"] == "prod"
    assert ours["node"]["kubeletVersion"] == "v1.35.4"
    assert "missing" not in ours


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            inside(pod("p", "web", "log", statuses=())),
            {"id": ID, "inferred": True, "candidates": ["web", "log"]},
        ),
        (inside(pod(), OTHER_ID, executable="/pause"), {"id": OTHER_ID, "kind": "sandbox", "inferred": True}),
        (
            inside(pod(statuses=(status("web", OTHER_ID, last=ID),))),
            {"id": ID, "name": "web", "kind": "container", "earlierRun": True, "restartCount": 0},
        ),
    ],
    ids=["not told apart", "sandbox", "earlier run"],
)
def test_what_is_not_certain_is_marked(told: InCluster, expected: dict[str, Any]) -> None:
    document = made(told).document
    assert document["vedette"]["kubernetes"]["container"] == expected
    assert problems(document["resource"], "Resource") == []


def test_a_process_of_a_node_is_its_instance_s() -> None:
    resource = describe(None, HOST, None, InCluster(CLUSTER, parse_node(node())))
    assert resource.document["resourceType"] == "Instance"
    assert resource.document["instanceDetails"]["instanceId"] == "i-0123456789abcdef0"
    assert resource.kubernetes is not None
    assert resource.kubernetes["node"]["name"] == NODE
    assert (resource.id, resource.where) == (NODE, f"host {NODE}")


def test_a_container_of_no_pod_stays_a_container() -> None:
    told = InCluster(CLUSTER, parse_node(node()), Unknown("NotInPod", "", "", None))
    document = made(told, reference(OTHER_ID, None)).document
    assert document["resource"]["resourceType"] == "Container"
    assert "missing" not in document["vedette"]["kubernetes"]


def test_a_pod_that_is_not_known_is_told_with_what_is_missing() -> None:
    told = InCluster(CLUSTER, None, Unknown("NotSeen", "pod: never reported", UID, None))
    document = made(told, ContainerRef(ID, UID, "containerd", "/x")).document
    assert document["resource"]["kubernetesDetails"]["kubernetesWorkloadDetails"] == {
        "type": "pods",
        "uid": UID,
        "containers": [{"id": ID, "containerRuntime": "containerd"}],
    }
    assert document["vedette"]["kubernetes"] == {
        "missing": ["pod: never reported", "node: the API server has reported no node of this name"]
    }
    assert problems(fold_document(None, made(told), NOW), allowed=OURS) == []


def test_the_next_pod_of_the_workload_is_the_same_finding_on_any_node() -> None:
    first = made(inside())
    again = made(
        inside(
            pod("web-2", uid="u2", node="node-b", statuses=(status("web", OTHER_ID),)),
            OTHER_ID,
        ),
        host="node-b",
    )
    assert again.id == first.id
    assert again.resource_id == "prod/deployments/web/web"


@pytest.mark.parametrize(
    "other",
    [
        inside(pod(namespace="dev")),
        inside(workload=ObjectRef("Deployment", "api", "d2", "apps/v1")),
        inside(workload=ObjectRef("StatefulSet", "web", "s", "apps/v1")),
        inside(workload=None),
        inside(pod("p", "log", statuses=(status("log", ID),))),
        inside(pod(), OTHER_ID, executable="/pause"),
    ],
    ids=["namespace", "name", "kind", "bare pod", "container", "sandbox"],
)
def test_another_place_is_another_finding(other: InCluster) -> None:
    assert made(other).id != made(inside()).id


def test_a_finding_lists_its_pods() -> None:
    first = fold_document(None, made(inside(), repeats=1), NOW)
    second = inside(pod("web-2", uid="u2", statuses=(status("web", OTHER_ID),)), OTHER_ID)
    joined = collect([made(second), made(inside())], 5)
    assert len(joined) == 1
    pods = fold_document(first, joined[0], NOW)["vedette"]["kubernetes"]["pods"]
    assert {(p["name"], p["uid"], p["node"], p["count"]) for p in pods} == {
        ("web-6d5f7c9b8-x7k2p", UID, NODE, 3),
        ("web-2", "u2", NODE, 1),
    }


def test_the_list_of_pods_is_bounded() -> None:
    document = None
    for number in range(MAX_PODS + 7):
        document = fold_document(document, made(inside(pod(f"p{number}", uid=f"u{number}"))), NOW)
    assert document is not None
    kubernetes = document["vedette"]["kubernetes"]
    assert (len(kubernetes["pods"]), kubernetes["morePods"]) == (MAX_PODS, 7)


@pytest.mark.parametrize(("uid", "archived"), [(UID, True), ("another", False)])
def test_a_new_pod_takes_a_finding_out_of_the_archive(uid: str, archived: bool) -> None:
    document = fold_document(None, made(inside()), NOW)
    document["service"]["archived"] = True
    again = fold_document(document, made(inside(pod("web-2", uid=uid))), NOW)
    assert again["service"]["archived"] is archived


@pytest.mark.parametrize(
    ("given", "wanted", "executable", "words"),
    [
        (pod(), ID, "", "container web of pod prod/web-6d5f7c9b8-x7k2p"),
        (pod(), OTHER_ID, "/pause", "the sandbox of pod prod/web-6d5f7c9b8-x7k2p"),
        (pod("p", "web", "log", statuses=()), ID, "", "a container of pod prod/p"),
        (
            pod("p", init=({"name": "setup"},), init_statuses=(status("setup", OTHER_ID),)),
            OTHER_ID,
            "",
            "init container setup of pod prod/p",
        ),
    ],
)
def test_the_place_in_words(given: dict[str, Any], wanted: str, executable: str, words: str) -> None:
    document = made(inside(given, wanted, executable=executable), title="", description="").document
    assert document["description"].endswith(f" on {words}.")


def test_a_static_and_a_deleted_pod_are_marked() -> None:
    mirror = {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x"}
    ours = made(inside(pod(annotations=mirror, owners=(owner("Node", NODE, "n"),)), gone=True)).document["vedette"]
    assert (ours["kubernetes"]["pod"]["static"], ours["kubernetes"]["pod"]["deleted"]) == (True, True)


def test_hostile_metadata_reaches_no_finding_raw() -> None:
    hostile = "\x1b[2J\u202e\ud800</script>"
    given = pod(
        hostile,
        {"name": hostile, "image": hostile, "volumeMounts": [{"name": hostile, "mountPath": hostile}]},
        labels={hostile: hostile},
        annotations={hostile: hostile},
        namespace=hostile,
        statuses=(),
    )
    document = fold_document(None, made(inside(given), title="", description=""), NOW)
    assert problems(document, allowed=OURS) == []
    encoded = json.dumps(document, ensure_ascii=False)
    encoded.encode("utf-8")
    assert not [c for c in encoded if ord(c) < 0x20 or 0x202A <= ord(c) <= 0x202E]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Deployment", "deployments"), ("CronJob", "cronjobs"), ("Pod", "pods"), ("Rollout", "rollouts")],
)
def test_types_are_plural_and_lower_case(kind: str, expected: str) -> None:
    assert plural(kind) == expected
