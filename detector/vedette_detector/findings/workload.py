"""A pod as GuardDuty's ``EKSCluster`` resource shows it, and what GuardDuty has no field for. Pure.

Every text in here was made safe where it was read (`vedette_detector.cluster.pods`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vedette_detector.cluster.context import PodContext, Unknown
from vedette_detector.cluster.nodes import NodeInfo
from vedette_detector.cluster.pods import ContainerSpec, Kind, ObjectRef, Pod
from vedette_detector.engine.detection import ContainerRef


@dataclass(frozen=True)
class Cluster:
    """The cluster that findings are of.

    Attributes:
        name: as configured; empty: not given.
        arn: of an EKS cluster; empty elsewhere.
    """

    name: str = ""
    arn: str = ""


_PLURALS = {"ingress": "ingresses", "proxy": "proxies"}


def plural(kind: str) -> str:
    """The resource's name as GuardDuty writes a workload's type: ``Deployment`` is ``deployments``."""
    lower = kind.lower()
    return _PLURALS.get(lower, f"{lower}s")


def image_prefix(image: str) -> str:
    """Everything before the image's own name: ``docker.io/library`` of ``docker.io/library/nginx:1``."""
    return image.rpartition("/")[0]


def without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without what says nothing."""
    return {k: v for k, v in values.items() if v not in (None, "", [], {})}


def cluster_details(cluster: Cluster) -> dict[str, Any]:
    """GuardDuty's ``EksClusterDetails``, as far as the settings tell. Its agents report, so it is active."""
    return {**without_empty({"name": cluster.name, "arn": cluster.arn}), "status": "ACTIVE"}


def _container(pod: Pod, spec: ContainerSpec, identifier: str) -> dict[str, Any]:
    return {
        **without_empty(
            {
                "containerRuntime": pod.runtime if identifier else "",
                "id": identifier,
                "name": spec.name,
                "image": spec.image,
                "imagePrefix": image_prefix(spec.image),
                "volumeMounts": [{"name": pod.full_volume(name), "mountPath": path} for name, path in spec.mounts],
            }
        ),
        "securityContext": {
            "privileged": spec.privileged,
            "allowPrivilegeEscalation": spec.allow_privilege_escalation,
        },
    }


def workload_details(found: PodContext, runtime: str) -> dict[str, Any]:
    """GuardDuty's ``KubernetesWorkloadDetails`` of a pod; the container that it is about comes first.

    Args:
        found: the pod.
        runtime: container runtime, guessed from the cgroup path, for where the API has not told it.
    """
    pod, match = found.pod, found.container
    containers = []
    if match.spec is not None:
        containers.append(_container(pod, match.spec, found.container_id))
    elif found.container_id:
        containers.append({"id": found.container_id})
    if containers and "containerRuntime" not in containers[0] and runtime not in ("", "unknown", "kubernetes"):
        containers[0]["containerRuntime"] = runtime
    for spec in pod.template.containers:
        if spec is not match.spec:
            status = pod.status(spec.name)
            containers.append(_container(pod, spec, status.id if status is not None else ""))
    return {
        "name": pod.name,
        "type": "pods",
        "uid": pod.uid,
        "namespace": pod.namespace,
        "hostNetwork": pod.template.host_network,
        "hostIPC": pod.template.host_ipc,
        "hostPID": pod.template.host_pid,
        **without_empty({"serviceAccountName": pod.template.service_account}),
        "containers": containers,
        "volumes": [
            {"name": name, **({"hostPath": {"path": path}} if path is not None else {})} for name, path in pod.volumes()
        ],
    }


def unknown_workload(container: ContainerRef) -> dict[str, Any]:
    """As `workload_details`, of a pod of which only the cgroup path speaks."""
    only = without_empty({"id": container.container_id, "containerRuntime": container.runtime})
    if only.get("containerRuntime") in ("unknown", "kubernetes"):
        del only["containerRuntime"]
    return {"type": "pods", "uid": container.pod_uid, "containers": [only]}


def scope(found: PodContext) -> str:
    """What identifies the resource of a finding: the workload and the container in it, not the single pod.

    The next pod of a Deployment, or of a CronJob every minute, that does the same is the same finding.
    """
    owner = found.workload
    name = found.container.name or (found.container.kind or "?")
    return f"{found.pod.namespace}/{plural(owner.kind)}/{owner.name}/{name}"


def where(found: PodContext) -> str:
    """The place in words: ``container web of pod prod/web-1``."""
    kind, name = found.container.kind, found.container.name
    pod = f"pod {found.pod.namespace}/{found.pod.name}"
    if kind is Kind.SANDBOX:
        return f"the sandbox of {pod}"
    words = {Kind.INIT: "init container", Kind.SIDECAR: "sidecar", Kind.EPHEMERAL: "ephemeral container"}
    return (
        f"{words.get(kind, 'container') if kind else 'container'} {name} of {pod}" if name else f"a container of {pod}"
    )


def node_details(node: NodeInfo) -> dict[str, Any]:
    """What a finding says of its node beside GuardDuty's ``instanceDetails``."""
    return without_empty(
        {
            "name": node.name,
            "uid": node.uid,
            "providerId": node.provider_id,
            "region": node.region,
            "zone": node.zone,
            "instanceType": node.instance_type,
            "osImage": node.os_image,
            "kubeletVersion": node.kubelet,
            "containerRuntime": node.runtime,
            "addresses": [*node.internal_ips, *node.external_ips],
        }
    )


def _owner(owner: ObjectRef) -> dict[str, Any]:
    return without_empty(
        {
            "kind": owner.kind,
            "type": plural(owner.kind),
            "name": owner.name,
            "uid": owner.uid,
            "apiVersion": owner.api_version,
        }
    )


def _container_details(found: PodContext) -> dict[str, Any]:
    match, spec = found.container, found.container.spec
    status = found.pod.status(spec.name) if spec is not None else None
    details: dict[str, Any] = {
        "id": found.container_id,
        "name": match.name,
        "kind": match.kind.value if match.kind is not None else None,
        "imageId": match.status.image_id if match.status is not None else None,
        "restartCount": status.restarts if status is not None else None,
        "candidates": list(match.candidates),
    }
    if match.inferred:
        details["inferred"] = True
    if match.earlier:
        details["earlierRun"] = True
    if spec is not None:
        details["securityContext"] = without_empty(
            {
                "runAsUser": spec.run_as_user,
                "runAsNonRoot": spec.run_as_non_root or None,
                "readOnlyRootFilesystem": spec.read_only_root or None,
                "seccompProfile": spec.seccomp,
                "capabilitiesAdded": list(spec.added),
                "capabilitiesDropped": list(spec.dropped),
            }
        )
    return without_empty(details)


def kubernetes_details(found: PodContext | Unknown | None, node: NodeInfo | None) -> dict[str, Any]:
    """Our ``vedette.kubernetes``.

    Args:
        found: the pod; None for a process of the host.
        node: the node, where known.
    """
    missing = list(found.missing) if isinstance(found, PodContext) else []
    if isinstance(found, Unknown) and found.message:
        missing.append(found.message)
    if node is None and not any(m.startswith("node:") for m in missing):
        missing.append("node: the API server has reported no node of this name")
    details: dict[str, Any] = {"node": node_details(node) if node is not None else None, "missing": missing}
    if isinstance(found, PodContext):
        pod = found.pod
        details["namespace"] = pod.namespace
        details["workload"] = _owner(found.workload)
        details["container"] = _container_details(found)
        details["pod"] = {
            **without_empty(
                {
                    "name": pod.name,
                    "uid": pod.uid,
                    "createdAt": pod.created,
                    "phase": pod.phase,
                    "ip": pod.ip,
                    "runtimeClass": pod.template.runtime_class,
                    "labels": dict(pod.template.labels),
                    "annotations": dict(pod.template.annotations),
                }
            ),
            **({"static": True} if pod.mirrored else {}),
            **({"deleted": True} if found.gone else {}),
            **({"sharesProcessNamespace": True} if pod.template.share_processes else {}),
        }
        details["nodeContainerId"] = found.outside
    return without_empty(details)
