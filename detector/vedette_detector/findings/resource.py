"""What a finding is about: a pod's container, another container, or the host.

For a container on the detector's own host (same boot id) what the runtime wrote down is read: the OCI bundle's
``config.json`` under containerd's, CRI-O's and podman's state directories, Docker's ``config.v2.json``, and runc's
``state.json``. No runtime socket is talked to. Names, images and annotations in there were chosen by whoever made the
container: they pass through `vedette_detector.text.safe` like everything else.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vedette_detector.cluster.context import PodContext, Unknown
from vedette_detector.cluster.nodes import NodeInfo
from vedette_detector.engine.detection import ContainerRef
from vedette_detector.findings.workload import (
    Cluster,
    cluster_details,
    image_prefix,
    kubernetes_details,
    scope,
    unknown_workload,
    where,
    workload_details,
)
from vedette_detector.findings.workload import without_empty as _without_empty
from vedette_detector.text import safe, safe_text

MAX_FILE = 1 << 20
"""Bytes read of one state file."""
_CACHED = 4096
_RETRY_S = 5.0
"""A container whose state was not readable is asked for again after this time: it may just be starting."""
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,1023}")
_CAP_SYS_ADMIN = "CAP_SYS_ADMIN"


@dataclass(frozen=True)
class Host:
    """The machine that a node's agent runs on, from its heartbeat.

    Attributes:
        ec2: EC2's instance identity document where the agent found one (``instanceId``, ``instanceType``, ``imageId``,
            ``availabilityZone``, ``privateIp``).
    """

    node: str
    boot_id: bytes = b""
    hostname: str = ""
    machine_id: str = ""
    kernel: str = ""
    arch: str = ""
    agent_version: str = ""
    ec2: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, node: str, boot_id: bytes, heartbeat: Mapping[str, Any] | None) -> Host:
        """Take what a heartbeat says; everything in it is optional."""
        heartbeat = heartbeat or {}
        host = heartbeat.get("host")
        host = host if isinstance(host, dict) else {}

        def text(source: Mapping[str, Any], name: str) -> str:
            value = source.get(name)
            return safe_text(value, 256) if isinstance(value, str) else ""

        ec2 = host.get("ec2")
        return cls(
            node=node,
            boot_id=boot_id,
            hostname=text(host, "hostname"),
            machine_id=text(host, "machine_id"),
            kernel=text(host, "kernel"),
            arch=text(host, "arch"),
            agent_version=text(heartbeat, "agent_version"),
            ec2=safe(ec2, limit=256, items=32) if isinstance(ec2, dict) else {},
        )


@dataclass(frozen=True)
class Resource:
    """What a finding is about.

    Attributes:
        type: GuardDuty's ``resourceType``.
        id: container id, the node's name, or ``namespace/deployments/name/container`` of a workload.
        scope: what identifies it in a detector: with the node, but for a workload, which is the same on all nodes.
        where: the place in words.
        document: GuardDuty's ``resource``.
        host: our addition: the machine.
        container: our addition: what GuardDuty has no field for; None for the host.
        kubernetes: our addition: pod, workload and node; None outside Kubernetes.
    """

    type: str
    id: str
    scope: str
    where: str
    document: dict[str, Any]
    host: dict[str, Any]
    container: dict[str, Any] | None = None
    kubernetes: dict[str, Any] | None = None

    @property
    def confirmed(self) -> bool:
        """Whether more than a node's word tells of it: the host, a pod, a container whose state was read."""
        return self.type != "Container" or bool((self.container or {}).get("stateFound"))


@dataclass(frozen=True)
class InCluster:
    """What Kubernetes tells of a process.

    Attributes:
        cluster: as configured.
        node: None where the API server has reported none of the name.
        found: None for a process of the host.
    """

    cluster: Cluster
    node: NodeInfo | None
    found: PodContext | Unknown | None = None


def describe(
    container: ContainerRef | None, host: Host, known: Mapping[str, Any] | None, inside: InCluster | None = None
) -> Resource:
    """Make the resource of a finding. Pure.

    Args:
        container: None for a process of the host.
        host: where it runs.
        known: what `ContainerStates.lookup` found.
        inside: what Kubernetes tells; None outside Kubernetes.
    """
    instance = _instance(host, inside.node if inside is not None else None)
    host_document = _without_empty(
        {
            "node": safe_text(host.node, 256),
            "hostname": host.hostname,
            "machineId": host.machine_id,
            "kernel": host.kernel,
            "architecture": host.arch,
            "bootId": host.boot_id.hex(),
        }
    )
    kubernetes = kubernetes_details(inside.found, inside.node) if inside is not None else None
    node_name = safe_text(host.node, 256)
    if container is None:
        # As GuardDuty has it, a process of a node is one of its instance, in a cluster too
        # (guardduty/latest/ug/guardduty-remediate-runtime-monitoring).
        document = {"resourceType": "Instance", "instanceDetails": instance}
        return Resource(
            "Instance",
            node_name,
            f"{host.node}\n{node_name}",
            f"host {node_name}",
            document,
            host_document,
            kubernetes=kubernetes,
        )
    known = known or {}
    identity = safe_text(container.container_id or container.cgroup_path, 512)
    runtime = known.get("runtime") or container.runtime
    details: dict[str, Any] = {"id": identity}
    if runtime and runtime != "unknown":
        details["containerRuntime"] = runtime
    for name in ("name", "image", "imagePrefix", "volumeMounts", "securityContext"):
        if known.get(name):
            details[name] = known[name]
    more = _without_empty(
        {
            "cgroupPath": safe_text(container.cgroup_path),
            "podUid": container.pod_uid,
            "stateFound": bool(known),
            **{k: known.get(k) for k in ("bundle", "rootfs", "hostname", "hostNamespaces", "annotations")},
        }
    )
    node_scope = f"{host.node}\n{identity}"
    if inside is not None and (isinstance(inside.found, PodContext) or container.pod_uid):
        document = {"resourceType": "EKSCluster", "eksClusterDetails": cluster_details(inside.cluster)}
        if isinstance(inside.found, PodContext):
            found = inside.found
            workload = workload_details(found, runtime)
            shared = scope(found)
            resource_id, identified, place = safe_text(shared, 512), shared, where(found)
        else:
            # Only its own node knows the pod so far: nothing but the container's id identifies it.
            workload = unknown_workload(container)
            resource_id, identified = identity, node_scope
            place = f"container {identity[:12]} of a pod not known yet"
        document["kubernetesDetails"] = {"kubernetesWorkloadDetails": workload}
        document["instanceDetails"] = instance
        return Resource("EKSCluster", resource_id, identified, place, document, host_document, more, kubernetes)
    document = {"resourceType": "Container", "containerDetails": details, "instanceDetails": instance}
    place = f"container {identity[:12]}"
    return Resource("Container", identity, node_scope, place, document, host_document, more, kubernetes)


def _instance(host: Host, node: NodeInfo | None) -> dict[str, Any]:
    """GuardDuty's ``InstanceDetails``; outside EC2 the node's name stands for the instance id.

    The API server's word comes before the agent's, which whoever is root on the node may forge.
    """
    ec2 = host.ec2

    def text(*names: str) -> str | None:
        return next((v for n in names if isinstance(v := ec2.get(n), str) and v), None)

    addresses: dict[bool, list[str]] = {False: [], True: []}
    for address in node.internal_ips if node is not None else ():
        addresses[":" in address].append(address)
    interface = _without_empty(
        {
            "privateDnsName": (node.internal_dns if node is not None else "") or host.hostname,
            "privateIpAddress": next(iter(addresses[False]), None) or text("privateIp", "private_ip"),
            "ipv6Addresses": addresses[True],
            "publicIp": next((a for a in node.external_ips if ":" not in a), None) if node is not None else None,
            "publicDnsName": node.external_dns if node is not None else None,
        }
    )
    return _without_empty(
        {
            "instanceId": (node.instance_id if node is not None else "")
            or text("instanceId", "instance_id")
            or safe_text(host.node, 256),
            "instanceType": (node.instance_type if node is not None else "") or text("instanceType", "instance_type"),
            "imageId": text("imageId", "image_id"),
            "availabilityZone": (node.zone if node is not None else "")
            or text("availabilityZone", "availability_zone"),
            "networkInterfaces": [interface] if interface else [],
        }
    )


class ContainerStates:
    """Looks up what container runtimes wrote down about a container on this host."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Read state below ``root``: the host's root directory."""
        self._root = root
        self._cache: OrderedDict[tuple[str, str], tuple[float, dict[str, Any] | None]] = OrderedDict()
        try:
            text = (root / "proc/sys/kernel/random/boot_id").read_text()
            self.boot_id = bytes.fromhex(text.strip().replace("-", ""))
        except (OSError, ValueError):
            self.boot_id = b""

    def lookup(self, container: ContainerRef, boot_id: bytes) -> dict[str, Any] | None:
        """What is known of a container; None where it runs elsewhere or its state is not readable."""
        if not boot_id or boot_id != self.boot_id or not container.container_id:
            return None
        if not _CONTAINER_ID.fullmatch(container.container_id):
            return None
        key = (container.container_id, container.cgroup_path)
        now = time.monotonic()
        cached = self._cache.get(key)
        if cached is not None and (cached[1] is not None or now - cached[0] < _RETRY_S):
            self._cache.move_to_end(key)
            return cached[1]
        found = self._read(container)
        self._cache[key] = (now, found)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return found

    def cached(self, container: ContainerRef, boot_id: bytes) -> dict[str, Any] | None:
        """What the last `lookup` found; reads nothing."""
        if not boot_id or boot_id != self.boot_id or not container.container_id:
            return None
        return self._cache.get((container.container_id, container.cgroup_path), (0.0, None))[1]

    def _read(self, container: ContainerRef) -> dict[str, Any] | None:
        identity = container.container_id
        assert identity is not None
        docker = self._json(self._root / "var/lib/docker/containers" / identity / "config.v2.json")
        for runtime, bundle in self._bundles(identity):
            config = self._json(bundle / "config.json")
            if config is not None:
                known = from_oci(config, runtime, self._shown(bundle))
                return {**known, **from_docker(docker)} if docker else known
        if docker is not None:
            return from_docker(docker)
        return self._from_runc(container)

    def _bundles(self, identity: str) -> Iterator[tuple[str, Path]]:
        tasks = self._root / "run/containerd/io.containerd.runtime.v2.task"
        for namespace in ("k8s.io", "default", "moby"):
            yield ("docker" if namespace == "moby" else "containerd"), tasks / namespace / identity
        for storage in ("run/containers/storage", "var/lib/containers/storage"):
            for kind in ("overlay-containers", "vfs-containers"):
                yield "", self._root / storage / kind / identity / "userdata"

    def _from_runc(self, container: ContainerRef) -> dict[str, Any] | None:
        """Plain runc: by its id, or by the cgroup that its state names."""
        assert container.container_id is not None
        for directory in ("run/runc", "run/docker/runtime-runc/moby", "run/containerd/runc/k8s.io"):
            base = self._root / directory
            candidates = [base / container.container_id]
            try:
                candidates += [base / name for name in sorted(os.listdir(base))[:2000]]
            except OSError:
                continue
            for number, candidate in enumerate(candidates):
                state = self._json(candidate / "state.json")
                if state is None or not (number == 0 or _owns(state, container.cgroup_path)):
                    continue
                labels = _dict(state.get("config")).get("labels")
                bundle = next(
                    (str(v)[7:] for v in (labels if isinstance(labels, list) else []) if str(v).startswith("bundle=")),
                    "",
                )
                config = self._json(self._root / bundle.lstrip("/") / "config.json") if bundle else None
                known = from_oci(config or {}, "runc", safe_text(bundle))
                known.setdefault("name", safe_text(str(state.get("id", "")), 256))
                rootfs = _dict(state.get("config")).get("rootfs")
                if isinstance(rootfs, str):
                    known["rootfs"] = safe_text(rootfs)
                return known
        return None

    def _shown(self, path: Path) -> str:
        return safe_text("/" + str(path.relative_to(self._root)))

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        """A JSON object from a regular file of bounded size; None when there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def _owns(state: Mapping[str, Any], cgroup_path: str) -> bool:
    """Whether runc's state names the cgroup or one above it. v1 paths have the controller after the mount point."""
    paths = state.get("cgroup_paths")
    for value in paths.values() if isinstance(paths, dict) else ():
        text = str(value)
        if not text.startswith("/sys/fs/cgroup/"):
            continue
        relative = text.removeprefix("/sys/fs/cgroup")
        for form in (relative, "/" + relative[1:].partition("/")[2]):
            if len(form) > 1 and (cgroup_path == form or cgroup_path.startswith(form + "/")):
                return True
    return False


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(annotations: Mapping[str, Any], *names: str) -> str:
    return next((safe_text(v, 512) for n in names if isinstance(v := annotations.get(n), str) and v), "")


def from_oci(config: Mapping[str, Any], runtime: str, bundle: str) -> dict[str, Any]:
    """Read an OCI runtime configuration. Pure; wrong types read as absent.

    See github.com/opencontainers/runtime-spec, config.md; the annotations are those that containerd's CRI plug-in,
    nerdctl, CRI-O and podman add.
    """
    annotations = _dict(config.get("annotations"))
    process, linux = _dict(config.get("process")), _dict(config.get("linux"))
    if not runtime:
        runtime = "cri-o" if any(str(k).startswith("io.kubernetes.cri-o.") for k in annotations) else "podman"
    name = _first(
        annotations,
        "io.kubernetes.cri.container-name",
        "io.kubernetes.container.name",
        "nerdctl/name",
        "io.podman.annotations.container-name",
        "io.container.manager.name",
    )
    image = _first(
        annotations,
        "io.kubernetes.cri.image-name",
        "io.kubernetes.cri-o.ImageName",
        "org.opencontainers.image.ref.name",
        "org.opencontainers.image.base.name",
        "nerdctl/image-name",
    )
    known: dict[str, Any] = {"runtime": runtime, "bundle": bundle}
    if name:
        known["name"] = name
    if image:
        known["image"] = image
        known["imagePrefix"] = image_prefix(image)
    mounts = config.get("mounts")
    known["volumeMounts"] = [
        {"name": safe_text(str(m.get("source", "")), 512), "mountPath": safe_text(str(m.get("destination", "")), 512)}
        for m in (mounts if isinstance(mounts, list) else [])[:256]
        if isinstance(m, dict) and (m.get("type") == "bind" or "bind" in (m.get("options") or ()))
    ][:64]
    if process:
        bounding = _dict(process.get("capabilities")).get("bounding")
        admin = isinstance(bounding, list) and _CAP_SYS_ADMIN in bounding
        known["securityContext"] = {
            "privileged": admin and not linux.get("seccomp") and not linux.get("maskedPaths"),
            "allowPrivilegeEscalation": process.get("noNewPrivileges") is not True,
        }
    namespaces = linux.get("namespaces")
    if isinstance(namespaces, list):
        own = {str(_dict(n).get("type")) for n in namespaces if not _dict(n).get("path")}
        joined = {str(_dict(n).get("type")) for n in namespaces if _dict(n).get("path")}
        known["hostNamespaces"] = [n for n in ("pid", "network", "ipc", "mount", "user") if n not in own | joined]
    hostname = config.get("hostname")
    if isinstance(hostname, str):
        known["hostname"] = safe_text(hostname, 256)
    rootfs = _dict(config.get("root")).get("path")
    if isinstance(rootfs, str):
        known["rootfs"] = safe_text(rootfs)
    known["annotations"] = safe(annotations, limit=512, items=32)
    return known


def from_docker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read Docker's ``config.v2.json``. Pure; wrong types read as absent."""
    known: dict[str, Any] = {"runtime": "docker"}
    name = config.get("Name")
    if isinstance(name, str) and name.strip("/"):
        known["name"] = safe_text(name.strip("/"), 256)
    image = _dict(config.get("Config")).get("Image")
    if isinstance(image, str) and image:
        known["image"] = safe_text(image, 512)
        known["imagePrefix"] = image_prefix(known["image"])
    return known
