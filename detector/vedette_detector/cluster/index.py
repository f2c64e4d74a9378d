"""Pods, nodes and owners as last seen, found by what a cgroup path tells. Pure; knows no network.

A pod is found by its UID; the pod of a static pod by the UID that its kubelet made (see
`vedette_detector.cluster.pods.CONFIG_HASH`); where a path holds no pod, by the container's id. Pods that are gone stay
for a while: a node's agent may deliver late what happened in them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vedette_detector.cluster.nodes import NodeInfo, parse_node
from vedette_detector.cluster.pods import (
    ContainerSpec,
    ContainerStatus,
    Kind,
    ObjectRef,
    Pod,
    as_dict,
    controller_of,
    parse_pod,
    text,
)
from vedette_detector.cluster.watch import uid_of

GONE_S = 3600.0
GONE_MOST = 20_000
"""Pods kept after they are gone: so long, and at most so many (some 40 MB)."""
_PAUSE = ("/pause", "/usr/bin/pod")
"""Programs of pause containers: the usual image's, and CRI-O's."""


@dataclass(frozen=True, slots=True)
class ContainerMatch:
    """Which container of its pod a process belongs to.

    Attributes:
        kind: None where it is not known.
        spec: None for the sandbox and where it is not known.
        status: what the kubelet said of this run; None where it has not reported it, or the run is over.
        inferred: concluded, as the kubelet has not reported the id.
        earlier: the id is one of an earlier run.
        candidates: names of the containers that it may be, where more than one.
    """

    kind: Kind | None = None
    spec: ContainerSpec | None = None
    status: ContainerStatus | None = None
    inferred: bool = False
    earlier: bool = False
    candidates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The container's name; empty where it is not known."""
        return self.spec.name if self.spec is not None else ""


def match_container(pod: Pod, container_id: str, executable: str = "") -> tuple[ContainerMatch, bool]:
    """Tell which of a pod's containers has an id.

    Args:
        pod: the pod.
        container_id: 64 hex digits of the cgroup path.
        executable: path of the process's executable, as a hint whether it is the pause program. It is never
            enough: a container may hold a program of that name.

    Returns:
        The match, and whether it is as good as it will get: false means that the kubelet's next report may tell more.
    """
    for status in pod.statuses:
        spec = pod.spec(status.name)
        if container_id == status.id:
            return ContainerMatch(spec.kind if spec else None, spec, status), True
        if container_id in status.earlier:
            return ContainerMatch(spec.kind if spec else None, spec, earlier=True), True
    starting = [c for c in pod.template.containers if _may_start(c, pod.status(c.name))]
    paused = executable in _PAUSE
    if len(starting) == 1 and not paused:
        (spec,) = starting
        return ContainerMatch(spec.kind, spec, inferred=True), True
    if starting:
        return ContainerMatch(candidates=tuple(c.name for c in starting), inferred=True), False
    if paused:
        return ContainerMatch(Kind.SANDBOX, inferred=True), False
    return ContainerMatch(), False


def _may_start(spec: ContainerSpec, status: ContainerStatus | None) -> bool:
    """Whether a run of the container may be under way that the kubelet has not reported."""
    if status is None or not status.id:
        return True
    # An init container that ended well is not run again, an ephemeral one never is.
    return not status.running and not (status.finished and spec.kind in (Kind.INIT, Kind.EPHEMERAL))


class PodIndex:
    """All pods; a `vedette_detector.cluster.watch.Sink`."""

    def __init__(
        self,
        *,
        gone_s: float = GONE_S,
        gone_most: int = GONE_MOST,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._gone_s, self._gone_most, self._clock, self._on_change = gone_s, gone_most, clock, on_change
        self._pods: dict[str, Pod] = {}
        self._gone: OrderedDict[str, tuple[float, Pod]] = OrderedDict()
        self._mirrors: dict[str, tuple[str, ...]] = {}
        self._containers: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._pods)

    @property
    def gone(self) -> int:
        """Pods kept although they are gone."""
        return len(self._gone)

    def put(self, given: dict[str, Any]) -> None:
        """Take a Pod object."""
        uid = uid_of(given)
        _, late = self._gone.pop(uid, (0.0, None))
        pod = parse_pod(given, self._pods.get(uid) or late)
        self._pods[pod.uid] = pod
        for identifier in pod.container_ids():
            self._containers[identifier] = pod.uid
        if pod.mirrored and pod.uid not in self._mirrors.get(pod.mirrored, ()):
            self._mirrors[pod.mirrored] = (*self._mirrors.get(pod.mirrored, ()), pod.uid)
        self._purge()
        self._on_change()

    def remove(self, given: dict[str, Any]) -> None:
        """A Pod object was deleted; its last state comes with the event."""
        uid = uid_of(given)
        if uid in self._pods:
            self.put(given)
            self._let_go(uid)

    def retain(self, uids: set[str]) -> None:
        """Let go of all that are not among ``uids``."""
        for uid in [u for u in self._pods if u not in uids]:
            self._let_go(uid)

    def _let_go(self, uid: str) -> None:
        self._gone[uid] = (self._clock(), self._pods.pop(uid))
        self._purge()

    def _purge(self) -> None:
        oldest = self._clock() - self._gone_s
        while self._gone:
            uid, (since, pod) = next(iter(self._gone.items()))
            if since >= oldest and len(self._gone) <= self._gone_most:
                return
            del self._gone[uid]
            for identifier in pod.container_ids():
                if self._containers.get(identifier) == uid:
                    del self._containers[identifier]
            if pod.mirrored:
                others = tuple(u for u in self._mirrors.get(pod.mirrored, ()) if u != uid)
                if others:
                    self._mirrors[pod.mirrored] = others
                else:
                    self._mirrors.pop(pod.mirrored, None)

    def get(self, uid: str) -> Pod | None:
        """The pod with this UID of the API, gone or not."""
        pod = self._pods.get(uid)
        return pod if pod is not None else self._gone.get(uid, (0.0, None))[1]

    def is_gone(self, pod: Pod) -> bool:
        """Whether the pod has been deleted."""
        return pod.uid not in self._pods

    def find(self, pod_uid: str | None, container_id: str | None, node: str) -> Pod | None:
        """The pod that a cgroup path tells.

        Args:
            pod_uid: as in the path: the API's UID, or a kubelet's own for a static pod.
            container_id: of the path.
            node: where the path is from; several mirror pods may claim one kubelet's UID, as anybody who may make
                pods may make one that looks like a mirror.
        """
        if pod_uid:
            pod = self.get(pod_uid)
            if pod is not None:
                return pod
            claims = [p for u in self._mirrors.get(pod_uid, ()) if (p := self.get(u)) is not None]
            claims = [p for p in claims if p.node == node] or claims
            for claim in claims:
                if container_id and container_id in claim.container_ids():
                    return claim
            # The kubelet makes its mirror again when somebody deletes it: of those left, one that is still there.
            return next((p for p in claims if not self.is_gone(p)), claims[0] if claims else None)
        uid = self._containers.get(container_id or "")
        return self.get(uid) if uid is not None else None


class NodeIndex:
    """All nodes by name; a `vedette_detector.cluster.watch.Sink`."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._on_change = on_change

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, given: dict[str, Any]) -> None:
        """Take a Node object."""
        node = parse_node(given)
        self._nodes[node.name] = node
        self._on_change()

    def remove(self, given: dict[str, Any]) -> None:
        """A Node object was deleted; a new one of the same name may be there already."""
        node = self._nodes.get(text(as_dict(given.get("metadata")).get("name")))
        if node is not None and node.uid == uid_of(given):
            del self._nodes[node.name]

    def retain(self, uids: set[str]) -> None:
        """Let go of all that are not among ``uids``."""
        self._nodes = {name: node for name, node in self._nodes.items() if node.uid in uids}

    def get(self, name: str) -> NodeInfo | None:
        """The node of this name."""
        return self._nodes.get(name)

    def all(self) -> list[NodeInfo]:
        """All nodes, by name."""
        return [node for _, node in sorted(self._nodes.items())]


class OwnerIndex:
    """Who owns the ReplicaSets or Jobs; a `vedette_detector.cluster.watch.Sink`.

    Those that are gone are kept as long as pods are.
    """

    def __init__(
        self,
        *,
        gone_s: float = GONE_S,
        gone_most: int = GONE_MOST,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._gone_s, self._gone_most, self._clock, self._on_change = gone_s, gone_most, clock, on_change
        self._owners: dict[str, ObjectRef | None] = {}
        self._gone: OrderedDict[str, tuple[float, ObjectRef | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def put(self, given: dict[str, Any]) -> None:
        """Take an object's metadata."""
        uid = uid_of(given)
        self._gone.pop(uid, None)
        self._owners[uid] = controller_of(as_dict(given.get("metadata")))
        self._on_change()

    def remove(self, given: dict[str, Any]) -> None:
        """An object was deleted."""
        self._let_go(uid_of(given))

    def retain(self, uids: set[str]) -> None:
        """Let go of all that are not among ``uids``."""
        for uid in [u for u in self._owners if u not in uids]:
            self._let_go(uid)

    def _let_go(self, uid: str) -> None:
        if uid in self._owners:
            self._gone[uid] = (self._clock(), self._owners.pop(uid))
        oldest = self._clock() - self._gone_s
        while self._gone and (len(self._gone) > self._gone_most or next(iter(self._gone.values()))[0] < oldest):
            self._gone.popitem(last=False)

    def owner(self, uid: str) -> tuple[bool, ObjectRef | None]:
        """(whether the object was seen, its controller)."""
        if uid in self._owners:
            return True, self._owners[uid]
        return (True, self._gone[uid][1]) if uid in self._gone else (False, None)


def top_owner(pod: Pod, above: Mapping[str, OwnerIndex]) -> tuple[ObjectRef, bool]:
    """What a person calls the workload, and whether that is certain.

    Pod → ReplicaSet → Deployment (or whatever controls the ReplicaSet), Job → CronJob; StatefulSets, DaemonSets and
    other controllers are the top themselves. A pod without controller, and a static pod (whose owner is its node), is
    its own.

    Args:
        pod: the pod.
        above: owners of ReplicaSets and Jobs, by kind.
    """
    own = ObjectRef("Pod", pod.name, pod.uid, "v1")
    owner = pod.owner
    if owner is None or owner.kind == "Node" or pod.mirrored:
        return own, True
    index = above.get(owner.kind)
    if index is None:
        return owner, True
    seen, higher = index.owner(owner.uid)
    return (higher or owner), seen
