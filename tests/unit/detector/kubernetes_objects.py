"""Objects of the Kubernetes API as it writes them, for tests."""

from __future__ import annotations

import itertools
from typing import Any

from vedette_detector.engine.detection import ContainerRef

ID = "4f0c3b9d" * 8
OTHER_ID = "0a1b2c3d" * 8
THIRD_ID = "99887766" * 8
UID = "6f1d2c3b-0a1b-4c5d-8e9f-001122334455"
NODE = "node-a"
_versions = itertools.count(1000)


def owner(kind: str, name: str, uid: str, api_version: str = "apps/v1", *, controller: bool = True) -> dict[str, Any]:
    """An owner reference."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": controller,
        "blockOwnerDeletion": True,
    }


def status(name: str, container_id: str = "", *, state: str = "running", last: str = "", restarts: int = 0) -> Any:
    """A container status."""
    return {
        "name": name,
        "containerID": f"containerd://{container_id}" if container_id else None,
        "image": "registry.example/team/web:1",
        "imageID": f"registry.example/team/web@sha256:{'1' * 64}" if container_id else "",
        "ready": state == "running",
        "restartCount": restarts,
        "state": {state: {"startedAt": "2026-09-21T14:00:00Z"} if state == "running" else {"reason": "X"}},
        "lastState": {"terminated": {"containerID": f"containerd://{last}", "exitCode": 1}} if last else {},
    }


def pod(
    name: str = "web-6d5f7c9b8-x7k2p",
    *containers: str | dict[str, Any],
    uid: str = UID,
    namespace: str = "prod",
    node: str = NODE,
    init: tuple[dict[str, Any], ...] = (),
    ephemeral: tuple[dict[str, Any], ...] = (),
    statuses: tuple[Any, ...] | None = None,
    init_statuses: tuple[Any, ...] = (),
    ephemeral_statuses: tuple[Any, ...] = (),
    owners: tuple[dict[str, Any], ...] = (),
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Pod with one container ``web`` that runs, unless told otherwise."""
    given = [
        {
            "name": c,
            "image": "registry.example/team/web:1",
            "volumeMounts": [
                {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
            ],
        }
        if isinstance(c, str)
        else c
        for c in (containers or ("web",))
    ]
    if statuses is None:
        statuses = tuple(status(c["name"], ID if n == 0 else f"{n:064x}") for n, c in enumerate(given))
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(next(_versions)),
            "creationTimestamp": "2026-09-21T13:59:58Z",
            "labels": labels if labels is not None else {"app": "web", "pod-template-hash": "6d5f7c9b8"},
            "annotations": annotations or {},
            "ownerReferences": list(owners),
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "web",
            "containers": given,
            "initContainers": list(init),
            "ephemeralContainers": list(ephemeral),
            "volumes": [
                {"name": "kube-api-access-x7k2p", "projected": {"sources": []}},
                {"name": "logs", "hostPath": {"path": "/var/log", "type": ""}},
            ],
            **(spec or {}),
        },
        "status": {
            "phase": "Running",
            "podIP": "10.88.0.7",
            "containerStatuses": list(statuses),
            "initContainerStatuses": list(init_statuses),
            "ephemeralContainerStatuses": list(ephemeral_statuses),
        },
    }


def node(name: str = NODE, **spec: Any) -> dict[str, Any]:
    """A Node on EC2."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(next(_versions)),
            "creationTimestamp": "2026-09-01T00:00:00Z",
            "labels": {
                "node.kubernetes.io/instance-type": "m7i.large",
                "topology.kubernetes.io/zone": "eu-central-1a",
                "topology.kubernetes.io/region": "eu-central-1",
                "kubernetes.io/os": "linux",
            },
        },
        "spec": {"providerID": "aws:///eu-central-1a/i-0123456789abcdef0", **spec},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.5"},
                {"type": "InternalIP", "address": "2001:db8::5"},
                {"type": "ExternalIP", "address": "198.51.100.5"},
                {"type": "InternalDNS", "address": "ip-10-0-0-5.internal"},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "Debian GNU/Linux 12",
                "kernelVersion": "6.1.0",
                "kubeletVersion": "v1.35.4",
                "containerRuntimeVersion": "containerd://1.7.2",
            },
        },
    }


def metadata(kind: str, name: str, uid: str, *owners: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a ReplicaSet or Job."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": "prod",
            "uid": uid,
            "resourceVersion": str(next(_versions)),
            "ownerReferences": list(owners),
        },
    }


def reference(container_id: str = ID, pod_uid: str | None = UID, inner: ContainerRef | None = None) -> ContainerRef:
    """The container of a cgroup path."""
    path = f"/kubepods/burstable/pod{pod_uid}/{container_id}" if pod_uid else f"/docker/{container_id}"
    return ContainerRef(container_id, pod_uid, "kubernetes" if pod_uid else "docker", path, inner)
