"""Which nodes are covered, and why the others are not: nodes, agent pods and the detector's own account, joined. Pure.

A reason must not change its words while nothing changes: each change of the status is a write that wakes whoever
watches. Ages and counts are the detector's to tell (``vedette status``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vedette_operator.rendering import Object

SHOWN = 100
"""Uncovered nodes that the status names."""
_STEADY = {
    "AgentSilent": "the agent's pod is ready, and the detector hears nothing of it: see the agent's log",
    "NotHeardSinceStart": "the detector was just started and has not heard of the agent yet",
    "EventsLost": "events were lost lately: see vedette status",
    "DeliveryStuck": "batches wait in the agent's spool and do not get through: see the agent's log",
    "NoAgent": "no agent has ever reported from this node: see the agent's log",
}


@dataclass(frozen=True)
class Reason:
    """Why a node is not covered."""

    reason: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """As the status has it."""
        return {"reason": self.reason, "message": self.message}


@dataclass(frozen=True)
class NodeCoverage:
    """One node. ``unsupported``: no agent can run there, and none is missed."""

    node: str
    pod: str = ""
    reasons: tuple[Reason, ...] = ()
    unsupported: str = ""

    @property
    def covered(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons and not self.unsupported


def readable(text: Any, most: int = 512) -> str:
    """Text of others on one line, without characters that a terminal obeys; nothing of it is hidden silently."""
    shown = re.sub(
        r"[^\x20-\x7e]", lambda m: m[0].encode("unicode_escape", "replace").decode("ascii"), str(text).strip()
    )
    return shown if len(shown) <= most else f"{shown[: most - 1]}~"


def judge(nodes: Sequence[Object], pods: Sequence[Object], answer: Mapping[str, Any] | None) -> list[NodeCoverage]:
    """Judge every node.

    Args:
        nodes: of the cluster.
        pods: agents' pods.
        answer: what ``GET /v1/coverage`` said; None: the detector did not answer.
    """
    by_node: dict[str, Object] = {}
    for agent in sorted(pods, key=lambda p: p["metadata"].get("creationTimestamp") or ""):
        by_node[_node_of(agent)] = agent
    told = {entry["node"]: entry for entry in (answer or {}).get("nodes") or []}
    judged = []
    for node in sorted(nodes, key=lambda n: n["metadata"]["name"]):
        name = node["metadata"]["name"]
        pod = by_node.get(name)
        pod_name = pod["metadata"]["name"] if pod else ""
        # A pod on a node that none should run on was put there by intent; it is judged like the others.
        if pod is None and (why := unsupported(node)):
            judged.append(NodeCoverage(name, unsupported=why))
            continue
        reasons = _pod_reasons(node, pod) or _told_reasons(told.get(name), answer is not None)
        judged.append(NodeCoverage(name, pod_name, tuple(reasons)))
    return judged


def unsupported(node: Object) -> str:
    """Why no agent can run on a node; empty when one can."""
    labels = node["metadata"].get("labels") or {}
    system, machine = labels.get("kubernetes.io/os", "linux"), labels.get("kubernetes.io/arch", "amd64")
    if labels.get("eks.amazonaws.com/compute-type") == "fargate":
        return "Fargate runs no agents"
    if labels.get("type") in ("virtual-kubelet", "kwok"):
        return "a virtual node has no kernel to watch"
    if system != "linux":
        return f"there is no agent for {readable(system, 40)}"
    return "" if machine == "amd64" else f"there is no agent for {readable(machine, 40)} machines"


def _node_of(pod: Object) -> str:
    """Where a pod is, or is to be: the DaemonSet controller names the node by an affinity (since Kubernetes 1.17)."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    required = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (required.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    for term in terms:
        for field in term.get("matchFields") or []:
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _pod_reasons(node: Object, pod: Object | None) -> list[Reason]:
    if pod is None:
        taints = [
            f"{t['key']}={t.get('value', '')}:{t['effect']}"
            for t in node["spec"].get("taints") or []
            if t.get("effect") in ("NoSchedule", "NoExecute")
        ]
        tainted = f"; the node's taints: {readable(', '.join(taints))}" if taints else ""
        return [
            Reason(
                "NoPod", f"there is no agent pod for this node: look at tolerations, nodeSelector and affinity{tainted}"
            )
        ]
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return [Reason("AgentStopping", "the agent's pod is being deleted")]
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return [
                Reason("Unschedulable", readable(condition.get("message") or condition.get("reason") or "no reason"))
            ]
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        if found := _container_reason(container):
            return [found]
    if status.get("phase") == "Failed":
        return [Reason("AgentFailed", readable(status.get("message") or status.get("reason") or "the pod failed"))]
    if not containers or any(not c.get("ready") for c in status.get("containerStatuses") or [{}]):
        return [Reason("AgentNotReady", "the agent's pod is starting")]
    return []


def _container_reason(container: Mapping[str, Any]) -> Reason | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    why, said = waiting.get("reason", ""), readable(waiting.get("message") or "")
    if why in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        # The kubelet alternates between two reasons and their messages: only the image is steady.
        return Reason("ImagePull", f"the image {readable(container.get('image'))} cannot be fetched")
    last = (
        (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated") or {}
    )
    if why == "CrashLoopBackOff" or (last.get("exitCode") and not container.get("ready")):
        message = readable(last.get("message") or last.get("reason") or "no last message")
        return Reason("AgentCrashing", f"exit code {last.get('exitCode', '?')}: {message}")
    if why and why not in ("ContainerCreating", "PodInitializing"):
        return Reason("AgentNotStarting", f"{readable(why, 80)}: {said}")
    return None


def _told_reasons(entry: Mapping[str, Any] | None, answered: bool) -> list[Reason]:
    if not answered:
        return [Reason("DetectorSilent", "the detector does not answer, so that nobody knows what arrives")]
    if entry is None:
        return [Reason("NoAgent", _STEADY["NoAgent"])]
    reasons = [Reason(readable(r.get("reason"), 64), readable(r.get("message"))) for r in entry.get("reasons") or []]
    return [Reason(r.reason, _STEADY.get(r.reason, r.message)) for r in reasons]


def summarise(judged: Sequence[NodeCoverage]) -> dict[str, Any]:
    """The status of a MonitoredCluster, without its conditions."""
    supported = [j for j in judged if not j.unsupported]
    covered = sum(j.covered for j in supported)
    reasons: dict[str, int] = {}
    for node in supported:
        for name in sorted({r.reason for r in node.reasons}):
            reasons[name] = reasons.get(name, 0) + 1
    uncovered = [j for j in supported if not j.covered]
    unknown = bool(uncovered) and all(r.reason == "DetectorSilent" for j in uncovered for r in j.reasons)
    return {
        "coverage": "UNKNOWN" if unknown or not supported else "UNHEALTHY" if uncovered else "HEALTHY",
        "summary": f"{covered}/{len(supported)}",
        "nodes": len(supported),
        "covered": covered,
        "percentage": covered * 100 // len(supported) if supported else 0,
        "unsupported": len(judged) - len(supported),
        "reasons": dict(sorted(reasons.items())),
        "uncovered": [
            {"node": j.node, **({"pod": j.pod} if j.pod else {}), "reasons": [r.as_dict() for r in j.reasons]}
            for j in uncovered[:SHOWN]
        ],
    }
