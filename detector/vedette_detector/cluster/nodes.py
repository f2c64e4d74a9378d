"""What is kept of a node: what a finding shows of the machine, and what coverage is told by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vedette_detector.cluster.pods import MAX_LABELS, as_dict, as_dicts, pairs, text

_EC2_INSTANCE = re.compile(r"aws:///[^/]*/(i-[0-9a-f]{1,32})")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node of the cluster.

    Attributes:
        provider_id: ``spec.providerID``, such as ``aws:///eu-central-1a/i-0123456789abcdef0``.
        instance_id: EC2's instance id out of it; empty elsewhere.
        internal_ips: addresses of type InternalIP.
        ready: whether the condition Ready is true.
        runtime: ``containerd://1.7.2``.
        taints: (key, value, effect).
    """

    name: str
    uid: str
    created: str
    provider_id: str
    instance_id: str
    instance_type: str
    zone: str
    region: str
    internal_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    hostname: str
    internal_dns: str
    external_dns: str
    ready: bool
    unschedulable: bool
    os: str
    arch: str
    os_image: str
    kernel: str
    kubelet: str
    runtime: str
    boot_id: str
    machine_id: str
    taints: tuple[tuple[str, str, str], ...]
    labels: tuple[tuple[str, str], ...]


def parse_node(given: Mapping[str, Any]) -> NodeInfo:
    """Read a Node object of the API. Pure; wrong types read as absent."""
    metadata, spec, status = (as_dict(given.get(k)) for k in ("metadata", "spec", "status"))
    labels, info = as_dict(metadata.get("labels")), as_dict(status.get("nodeInfo"))
    addresses = [(a.get("type"), text(a.get("address"))) for a in as_dicts(status.get("addresses"), 32)]

    def address(kind: str) -> tuple[str, ...]:
        return tuple(value for given, value in addresses if given == kind and value)

    def label(*names: str) -> str:
        return next((t for n in names if (t := text(labels.get(n), 63))), "")

    provider = text(spec.get("providerID"), 512)
    instance = _EC2_INSTANCE.fullmatch(provider)
    return NodeInfo(
        name=text(metadata.get("name")),
        uid=text(metadata.get("uid"), 64),
        created=text(metadata.get("creationTimestamp"), 32),
        provider_id=provider,
        instance_id=instance.group(1) if instance else "",
        instance_type=label("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"),
        zone=label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
        region=label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
        internal_ips=address("InternalIP"),
        external_ips=address("ExternalIP"),
        hostname=next(iter(address("Hostname")), ""),
        internal_dns=next(iter(address("InternalDNS")), ""),
        external_dns=next(iter(address("ExternalDNS")), ""),
        ready=any(
            c.get("type") == "Ready" and c.get("status") == "True" for c in as_dicts(status.get("conditions"), 64)
        ),
        unschedulable=spec.get("unschedulable") is True,
        os=text(info.get("operatingSystem"), 63) or label("kubernetes.io/os"),
        arch=text(info.get("architecture"), 63),
        os_image=text(info.get("osImage")),
        kernel=text(info.get("kernelVersion")),
        kubelet=text(info.get("kubeletVersion"), 63),
        runtime=text(info.get("containerRuntimeVersion"), 128),
        boot_id=text(info.get("bootID"), 64),
        machine_id=text(info.get("machineID"), 64),
        taints=tuple(
            (text(t.get("key"), 317), text(t.get("value"), 63), text(t.get("effect"), 63))
            for t in as_dicts(spec.get("taints"), 32)
        ),
        labels=pairs(labels, MAX_LABELS, 63),
    )
