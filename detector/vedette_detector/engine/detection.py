"""What the engine hands on: a confirmed hit with everything that history knew about it at that moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class ContainerRef:
    """The container that a cgroup belongs to, as far as its path tells.

    Attributes:
        container_id: the outermost 64-hex component of the path; the cgroup's leaf name when a process with its own
            pid namespace lives in a cgroup without such a component.
        pod_uid: UID of the pod, with dashes, or None outside Kubernetes.
        runtime: ``docker``, ``containerd``, ``cri-o``, ``podman``, ``kubernetes`` (in a pod, runtime not told) or
            ``unknown``; a guess from the path's form.
        cgroup_path: the path below the hierarchy's root, made safe to show.
        inner: the container of a pod that the path names below this one, where this one is in no pod: the node may
            itself be a container. Whoever may make cgroups in this container chooses it.
    """

    container_id: str | None
    pod_uid: str | None
    runtime: str
    cgroup_path: str
    inner: ContainerRef | None = None


@dataclass
class Detection:
    """One occurrence of a finding: plain data, picklable, JSON-safe where it says dict.

    Attributes:
        finding_type: GuardDuty's name of the type.
        severity: 1.0 to 10.0.
        rule_id: the Sigma rule's id or the detector's id.
        title: one line.
        description: one or two sentences.
        key: aggregation parameters beside type and resource, in a fixed order.
        node: where it happened.
        time_ns: ns since boot (CLOCK_BOOTTIME).
        wall: the same moment, UTC.
        event: the event as `Event.as_dict` gives it.
        process: GuardDuty ``ProcessDetails``, with ``arguments`` (list of text) besides.
        lineage: GuardDuty ``LineageObject`` of each ancestor, nearest first.
        context: GuardDuty ``RuntimeContext`` keys.
        action: GuardDuty ``Action``, or None.
        evidence: GuardDuty ``Evidence``, or None.
        container: None for a process of the host.
        host_process: whether the process runs outside any container.
        notes: sentences that a person should read with the finding.
        triage: what to look at.
        related_events: events around the hit, as `Event.as_dict` gives them.
        repeats: how many further occurrences with the same key, process and batch this one stands for.
    """

    finding_type: str
    severity: float
    rule_id: str
    title: str
    description: str
    key: tuple[str, ...]
    node: str
    time_ns: int
    wall: datetime
    event: dict[str, Any]
    process: dict[str, Any]
    lineage: list[dict[str, Any]] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    action: dict[str, Any] | None = None
    evidence: dict[str, Any] | None = None
    container: ContainerRef | None = None
    host_process: bool = True
    notes: list[str] = field(default_factory=list)
    triage: str = ""
    related_events: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0
