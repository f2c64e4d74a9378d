"""Nodes that exist in the API only, for tests of what many nodes do to an operator. kwok plays their kubelets.

kwok is told by stages (https://kwok.sigs.k8s.io/docs/user/stages-configuration/) what becomes of an object: a node is
made ready, a pod on such a node runs at once, a pod of a Job is done at once, a pod that is deleted goes. The status
templates are Go templates that give YAML.
"""

from __future__ import annotations

import json
from typing import Any

from tools.localcluster.build import KUBERNETES_VERSION
from tools.localcluster.layout import Layout, Network

Json = dict[str, Any]

MARK = "kwok.x-k8s.io/node"
"""Annotation and taint of simulated nodes, by which kwok knows them and ordinary pods keep away."""
LABEL = "type=kwok"
"""By which simulated nodes are selected."""
LEASE_S = 120
"""kwok renews a node's lease after a quarter of this. The controller manager calls a node lost after 50 s; shorter
leases would only make a thousand nodes cost more."""


def node_name(layout: Layout, number: int) -> str:
    """The name of a simulated node, counted from 0."""
    return f"{layout.name}-simulated-{number:04}"


def node(layout: Layout, number: int) -> Json:
    """A simulated node; pods that are to run there tolerate the taint `MARK`."""
    name = node_name(layout, number)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {MARK: "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **dict([LABEL.split("=")]),
            },
        },
        "spec": {"taints": [{"key": MARK, "value": "fake", "effect": "NoSchedule"}]},
    }


def status(layout: Layout, network: Network, number: int) -> Json:
    """The part of a simulated node's status that is its own; the stage adds the conditions."""
    address = str(network.simulated_nodes[1 + number])
    resources = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    return {
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": node_name(layout, number)},
            ],
            "allocatable": resources,
            "capacity": resources,
        }
    }


_NODE_READY = """
conditions:
- {type: Ready, status: "True", reason: Simulated, message: played by kwok,
   lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
{{ range $type := list "MemoryPressure" "DiskPressure" "PIDPressure" "NetworkUnavailable" }}
- {type: {{ $type }}, status: "False", reason: Simulated, message: played by kwok,
   lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
{{ end }}
phase: Running
nodeInfo:
  architecture: amd64
  operatingSystem: linux
  osImage: simulated
  kernelVersion: simulated
  containerRuntimeVersion: containerd://simulated
  kubeletVersion: VERSION
  kubeProxyVersion: VERSION
  bootID: simulated
  machineID: simulated
  systemUUID: simulated
"""

_POD_RUNS = """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ range .spec.readinessGates }}
- {type: {{ .conditionType | Quote }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ with NodeIPsWith .spec.nodeName }}
hostIP: {{ index . 0 | Quote }}
hostIPs: [{ip: {{ index . 0 | Quote }}}]
{{ end }}
{{ with PodIPsWith .spec.nodeName (or .spec.hostNetwork false) (or .metadata.uid "") (or .metadata.name "")
        (or .metadata.namespace "") }}
podIP: {{ index . 0 | Quote }}
podIPs: [{ip: {{ index . 0 | Quote }}}]
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, started: true, restartCount: 0,
   state: {running: {startedAt: {{ $now | Quote }}}}}
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}}
{{ end }}
"""

_POD_DONE = """
{{ $now := Now }}
phase: Succeeded
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: false, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}}
{{ end }}
"""


def _stage(name: str, kind: str, conditions: list[Json], outcome: Json) -> Json:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": conditions},
            "next": outcome,
        },
    }


def stages() -> list[Json]:
    """What becomes of simulated nodes and their pods."""
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    deleted = ".metadata.deletionTimestamp"
    alive: Json = {"key": deleted, "operator": "DoesNotExist"}

    def phase(value: str) -> Json:
        return {"key": ".status.phase", "operator": "In", "values": [value]}

    return [
        _stage(
            "node-ready",
            "Node",
            [{"key": ready, "operator": "NotIn", "values": ["True"]}],
            {"statusTemplate": _NODE_READY.replace("VERSION", KUBERNETES_VERSION)},
        ),
        _stage("pod-runs", "Pod", [alive, phase("Pending")], {"statusTemplate": _POD_RUNS}),
        _stage(
            "pod-done",
            "Pod",
            [
                alive,
                phase("Running"),
                {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["Job"]},
            ],
            {"statusTemplate": _POD_DONE},
        ),
        _stage("pod-goes", "Pod", [{"key": deleted, "operator": "Exists"}], {"delete": True}),
    ]


def stages_file() -> str:
    """The stages as kwok reads them: documents one after the other, JSON being YAML."""
    return "---\n".join(json.dumps(stage, indent=1) + "\n" for stage in stages())
