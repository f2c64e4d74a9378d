"""Which pod, workload and node a process belongs to, as far as Kubernetes has told by now.

Watches keep `vedette_detector.cluster.index` up to date. A lookup answers at once. Where the answer could get better,
because the pod, its workload or the container's id have not been reported yet, the caller may wait for `settled` once,
with one deadline for everything that it asks; a container that was waited for in vain is not waited for again for a
while, so that nobody can hold findings back by making many.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vedette_detector.cluster.api import METADATA, METADATA_LIST
from vedette_detector.cluster.index import ContainerMatch, NodeIndex, OwnerIndex, PodIndex, match_container, top_owner
from vedette_detector.cluster.nodes import NodeInfo
from vedette_detector.cluster.pods import Kind, ObjectRef, Pod
from vedette_detector.cluster.watch import Api, Resource, Watch
from vedette_detector.engine.detection import ContainerRef

WAIT_S = 2.0
"""Longest time that a finding waits for its pod."""
WAITED_S = 60.0
"""How long a container that was waited for in vain is not waited for again."""
_WAITED_KEPT = 20_000
AWAY_S = 10.0
"""When the server has not answered for so long, nothing is waited for."""

PODS = Resource("pods", "/api/v1/pods")
NODES = Resource("nodes", "/api/v1/nodes")
REPLICA_SETS = Resource("replicasets", "/apis/apps/v1/replicasets", METADATA, METADATA_LIST)
JOBS = Resource("jobs", "/apis/batch/v1/jobs", METADATA, METADATA_LIST)


@dataclass(frozen=True, slots=True)
class PodContext:
    """What is known of a process's pod.

    Attributes:
        pod: the pod.
        container: which of its containers.
        container_id: of the cgroup path.
        workload: top owner; the pod itself where nothing owns it.
        node: None where the node is not known.
        gone: whether the pod has been deleted since.
        outside: id of a container around the whole node, where the node is one itself.
        missing: what is not known, and why, one sentence each.
    """

    pod: Pod
    container: ContainerMatch
    container_id: str
    workload: ObjectRef
    node: NodeInfo | None
    gone: bool = False
    outside: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """No pod.

    Attributes:
        reason: ``NotInPod``: the cgroup path names no pod; ``NotSeen``: no such pod has been reported; ``OtherNode``:
            the pod runs on another node; ``NotSynced``: the list of pods has not been read yet.
        message: the reason as a sentence; empty for ``NotInPod``.
        pod_uid: of the path, if any.
        node: None where the node is not known.
    """

    reason: str
    message: str
    pod_uid: str
    node: NodeInfo | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One lookup."""

    container: ContainerRef
    node: str
    executable: str = ""


@dataclass
class Statistics:
    """Counted since the start."""

    lookups: int = 0
    unknown: int = 0
    waits: int = 0
    waits_in_vain: int = 0
    waited_seconds: float = 0.0


class KubernetesContext:
    """The watches, and lookups in what they have brought."""

    def __init__(self, api: Api, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake: set[asyncio.Event] = set()
        self.pods = PodIndex(clock=clock, on_change=self._changed)
        self._nodes = NodeIndex()
        self._above = {kind: OwnerIndex(clock=clock, on_change=self._changed) for kind in ("ReplicaSet", "Job")}
        self._watches = [
            Watch(api, PODS, self.pods),
            Watch(api, NODES, self._nodes),
            Watch(api, REPLICA_SETS, self._above["ReplicaSet"]),
            Watch(api, JOBS, self._above["Job"]),
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._waited: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.statistics = Statistics()

    async def start(self, wait_s: float = 0.0) -> None:
        """Begin to watch; returns when everything was listed once, or after ``wait_s`` seconds."""
        self._tasks = [asyncio.create_task(w.run(), name=f"watch {w.state.name}") for w in self._watches]
        if wait_s > 0:
            waiting = [asyncio.ensure_future(w.synced.wait()) for w in self._watches]
            _, late = await asyncio.wait(waiting, timeout=wait_s)
            for task in late:
                task.cancel()

    async def stop(self) -> None:
        """End the watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    @property
    def synced(self) -> bool:
        """Whether everything was listed once."""
        return all(w.state.synced for w in self._watches)

    def node(self, name: str) -> NodeInfo | None:
        """A node by name."""
        return self._nodes.get(name)

    def nodes(self) -> list[NodeInfo]:
        """All nodes, by name; empty before the first list."""
        return self._nodes.all()

    def node_of_pod(self, namespace: str, name: str, uid: str) -> str | None:
        """Where a pod runs; None where no such pod, or none with this UID, has been reported."""
        pod = self.pods.get(uid)
        return pod.node or None if pod is not None and (pod.namespace, pod.name) == (namespace, name) else None

    # Lookups

    def find(self, container: ContainerRef, node: str, executable: str = "") -> PodContext | Unknown:
        """What is known now.

        Args:
            container: of the process.
            node: that reported it. Its word is taken for its own pods only.
            executable: path of the process's executable, where known.
        """
        self.statistics.lookups += 1
        found, _ = self._find(Wanted(container, node, executable))
        self.statistics.unknown += isinstance(found, Unknown)
        return found

    async def lookup(
        self, container: ContainerRef, node: str, executable: str = "", *, wait_s: float | None = None
    ) -> PodContext | Unknown:
        """What is known at once, or after waiting for at most ``wait_s`` (`WAIT_S`) where more may come."""
        await self.settled([Wanted(container, node, executable)], wait_s)
        return self.find(container, node, executable)

    def pending(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Those of ``wanted`` that are worth waiting for."""
        if self._away():
            return []
        return [w for w in wanted if not self._find(w)[1] and not self._was_waited_for(w)]

    async def settled(self, wanted: Sequence[Wanted], wait_s: float | None = None) -> None:
        """Wait until nothing of ``wanted`` is worth waiting for, for at most ``wait_s`` (`WAIT_S`) in all."""
        left = self.pending(wanted)
        if not left:
            return
        began = self._clock()
        deadline = began + (WAIT_S if wait_s is None else wait_s)
        self.statistics.waits += 1
        changed = asyncio.Event()
        self._wake.add(changed)
        try:
            while left and (remaining := deadline - self._clock()) > 0:
                try:
                    await asyncio.wait_for(changed.wait(), remaining)
                except TimeoutError:
                    break
                changed.clear()
                left = self.pending(left)
        finally:
            self._wake.discard(changed)
        self.statistics.waited_seconds += self._clock() - began
        self.statistics.waits_in_vain += bool(left)
        for one in left:
            self._waited[_waiting_key(one)] = self._clock()
            self._waited.move_to_end(_waiting_key(one))
        while len(self._waited) > _WAITED_KEPT:
            self._waited.popitem(last=False)

    def _changed(self) -> None:
        for event in self._wake:
            event.set()

    def _was_waited_for(self, wanted: Wanted) -> bool:
        since = self._waited.get(_waiting_key(wanted))
        return since is not None and self._clock() - since < WAITED_S

    def _away(self) -> bool:
        """Whether waiting is in vain: the server does not answer, and has not for a while."""
        state = self._watches[0].state
        return bool(state.synced and not state.connected and time.time() - state.away_since > AWAY_S)

    def _find(self, wanted: Wanted) -> tuple[PodContext | Unknown, bool]:
        """What is known, and whether it is as good as it will get."""
        container, outside = wanted.container, ""
        inner = container.inner
        if container.pod_uid is None and inner is not None:
            # A node that is a container itself (kind, k3d). That the API knows this pod on this node keeps a container
            # beside the kubelet, which could name its own cgroups so, from speaking for any other than those.
            pod = self.pods.find(inner.pod_uid, inner.container_id, wanted.node)
            if pod is not None and pod.node == wanted.node:
                container, outside = inner, container.container_id or ""
        node = self._nodes.get(wanted.node)
        pod = self.pods.find(container.pod_uid, container.container_id, wanted.node)
        if pod is None and not container.pod_uid:
            return Unknown("NotInPod", "", "", node), True
        uid = container.pod_uid or ""
        if pod is None:
            state = self._watches[0].state
            if not state.synced:
                return Unknown(
                    "NotSynced", f"pod: the list of pods has not been read yet{self._why()}", uid, node
                ), False
            return Unknown(
                "NotSeen", f"pod: the API server has reported no pod with this UID{self._why()}", uid, node
            ), False
        if pod.node != wanted.node:
            message = f"pod: the API server says that {pod.namespace}/{pod.name} runs on another node"
            # A pod without node has just been made, and its event is on the way.
            return Unknown("OtherNode", message, uid, node), bool(pod.node)
        match, certain = match_container(pod, container.container_id or "", wanted.executable)
        workload, owned = top_owner(pod, self._above)
        missing = []
        if match.kind is None or (match.spec is None and match.kind is not Kind.SANDBOX):
            missing.append(_missing_container(match) + self._why())
        if not owned:
            missing.append(f"workload: the owner of {workload.kind} {workload.name} has not been reported{self._why()}")
        if node is None:
            missing.append(f"node: the API server has reported no node of this name{self._why()}")
        found = PodContext(
            pod,
            match,
            container.container_id or "",
            workload,
            node,
            self.pods.is_gone(pod),
            outside,
            tuple(missing),
        )
        return found, certain and owned

    def _why(self) -> str:
        """What to add to whatever is missing while the server does not answer."""
        state = self._watches[0].state
        if state.connected or not state.away_since:
            return ""
        return f" (it has not answered since {_iso(state.away_since)}: {state.error or 'no answer yet'})"

    # For people

    def state(self) -> dict[str, Any]:
        """How the watches do, as JSON."""
        now = time.time()
        states = [w.state for w in self._watches]
        away = [s.away_since for s in states if not s.connected and s.away_since]
        return {
            "synced": self.synced,
            "connected": all(s.connected for s in states),
            "away_since": _iso(min(away)) if away else None,
            "gone_pods": self.pods.gone,
            "lookups": self.statistics.lookups,
            "unknown": self.statistics.unknown,
            "waits": self.statistics.waits,
            "waits_in_vain": self.statistics.waits_in_vain,
            "waited_seconds": round(self.statistics.waited_seconds, 3),
            "watches": [
                {
                    "resource": s.name,
                    "synced": s.synced,
                    "connected": s.connected,
                    "objects": w.objects,
                    "last_contact_s": round(now - s.contact, 1) if s.contact else None,
                    "away_since": _iso(s.away_since) if s.away_since and not s.connected else None,
                    "lists": s.lists,
                    "events": s.events,
                    "failures": s.failures,
                    "unreadable": s.unreadable,
                    "error": s.error or None,
                }
                for w in self._watches
                for s in (w.state,)
            ],
        }


def _waiting_key(wanted: Wanted) -> tuple[str, str, str]:
    # With the node: one that reports another's pods must not make that one's findings go out too early.
    return (wanted.node, wanted.container.pod_uid or "", wanted.container.container_id or "")


def _missing_container(match: ContainerMatch) -> str:
    if match.candidates:
        names = ", ".join(match.candidates)
        return f"container: the kubelet has not reported its id; it may be one of: {names}"
    return "container: its id is in no status of the pod: it is the sandbox, or was started again just now"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
