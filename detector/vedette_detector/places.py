"""Where detections happened: what the host's disk and the Kubernetes API tell of a process's container.

`Places.settle` and `Places.prepare` are for the intake, before it makes findings: the one waits, for a bounded time,
for pods that the API server has not reported yet; the other reads what container runtimes wrote, in a thread. Then
`Places.resource` only looks up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from vedette_detector.cluster.context import KubernetesContext, Wanted
from vedette_detector.engine.detection import Detection
from vedette_detector.findings.resource import ContainerStates, Host, InCluster, Resource, describe
from vedette_detector.findings.workload import Cluster
from vedette_events.framing import BatchHeader


class Places:
    """Makes the resource of a finding.

    Args:
        states: of containers on this host.
        cluster: as configured.
        context: set once the detector talks to Kubernetes; None outside.
    """

    def __init__(self, states: ContainerStates, cluster: Cluster) -> None:
        self._states = states
        self._cluster = cluster
        self.context: KubernetesContext | None = None

    def settle(self, found: Sequence[Detection], header: BatchHeader) -> Awaitable[None] | None:
        """What to wait for before detections become findings; None: nothing, all is known that will be."""
        if self.context is None:
            return None
        wanted = [w for d in found if (w := _wanted(d, header.node)) is not None]
        return self.context.settled(wanted) if self.context.pending(wanted) else None

    async def prepare(self, found: Sequence[tuple[Detection, BatchHeader]]) -> None:
        """Read the state of containers that `resource` will be asked for."""
        mine = [
            (d.container, h.boot_id) for d, h in found if d.container is not None and h.boot_id == self._states.boot_id
        ]
        if mine:
            await asyncio.to_thread(lambda: [self._states.lookup(*one) for one in mine])

    def resource(self, detection: Detection, host: Host) -> Resource:
        """What a finding is about, out of what is known now."""
        container = detection.container
        known = self._states.cached(container, host.boot_id) if container is not None else None
        if self.context is None:
            return describe(container, host, known)
        wanted = _wanted(detection, host.node)
        found = self.context.find(wanted.container, wanted.node, wanted.executable) if wanted is not None else None
        return describe(container, host, known, InCluster(self._cluster, self.context.node(host.node), found))


def _wanted(detection: Detection, node: str) -> Wanted | None:
    if detection.container is None:
        return None
    executable = detection.process.get("executablePath")
    return Wanted(detection.container, node, executable if isinstance(executable, str) else "")
