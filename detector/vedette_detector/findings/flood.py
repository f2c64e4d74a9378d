"""Bounds how many different findings one resource, and one node, can cause.

Whoever runs code in a container chooses the paths and names that aggregation keys are made of, and could fill the
database, and hide one finding among thousands, by varying them. Beyond the bound, further findings of the same type
and resource become occurrences of one finding that says so. Whoever controls a node can make up containers as well:
beyond a second bound, findings of the same type become occurrences of one finding of the node. A few findings of each
resource that is known not to be made up stay out of that, so that one container cannot hide what happens in another.

Each node has its own counts, so that no node uses up what is meant for another.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

OVERFLOW_KEY = ("(many different)",)
NODE_RESOURCES = 4
"""The different findings of one node are bounded by those of so many resources."""
CONFIRMED_RESERVE = 20
"""Different findings of one type that a confirmed resource may have although its node has reached its bound."""
_IDS_KEPT = 500_000
"""Finding ids remembered over all nodes (some 50 MB); beyond that the node with the most gives up what it has of the
resource heard of longest ago."""


class Verdict(Enum):
    """What becomes of a finding."""

    ADMITTED = "admitted"
    RESOURCE_FULL = "resource full"
    NODE_FULL = "node full"


@dataclass
class _Node:
    began: float
    admitted: int = 0
    ids: int = 0
    seen: OrderedDict[tuple[str, str], tuple[float, set[str]]] = field(default_factory=OrderedDict)


class FloodGate:
    """Counts different findings for each node, type and resource in periods of fixed length."""

    def __init__(self, limit: int, period_s: float = 3600.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._period_s = period_s
        self._clock = clock
        self._nodes: dict[str, _Node] = {}
        self._total = 0

    def judge(
        self, node: str, finding_type: str, resource: str, finding_id: str, *, confirmed: bool = False
    ) -> Verdict:
        """Whether a finding may stand for itself.

        Args:
            node: whose agent reported it.
            finding_type: GuardDuty's name.
            resource: what identifies its resource.
            finding_id: of the finding.
            confirmed: somebody else than the node vouches for the resource: the API server for a pod, say.
        """
        key, now = (finding_type, resource), self._clock()
        of_node = self._nodes.setdefault(node, _Node(now))
        if now - of_node.began >= self._period_s:
            of_node.began, of_node.admitted = now, 0
        began, ids = of_node.seen.get(key, (now, set()))
        if now - began >= self._period_s:
            self._forget(of_node, ids)
            began, ids = now, set()
        if finding_id in ids:
            of_node.seen.move_to_end(key)
            return Verdict.ADMITTED
        if len(ids) >= self.limit:
            return Verdict.RESOURCE_FULL
        reserved = confirmed and len(ids) < CONFIRMED_RESERVE
        if of_node.admitted >= self.limit * NODE_RESOURCES and not reserved:
            return Verdict.NODE_FULL
        ids.add(finding_id)
        of_node.seen[key] = (began, ids)
        of_node.seen.move_to_end(key)
        of_node.admitted += 1
        of_node.ids += 1
        self._total += 1
        while self._total > _IDS_KEPT:
            largest = max(self._nodes.values(), key=lambda n: n.ids)
            _, (_, oldest) = largest.seen.popitem(last=False)
            self._forget(largest, oldest)
        return Verdict.ADMITTED

    def _forget(self, node: _Node, ids: set[str]) -> None:
        node.ids -= len(ids)
        self._total -= len(ids)

    def forget(self, node: str) -> None:
        """Remove a node."""
        gone = self._nodes.pop(node, None)
        if gone is not None:
            self._total -= gone.ids

    def note(self, verdict: Verdict) -> str:
        """What the finding that takes the rest says."""
        limit, whose = (self.limit, "type came from this resource")
        if verdict is Verdict.NODE_FULL:
            limit, whose = self.limit * NODE_RESOURCES, "and other types came from this node"
        return (
            f"More than {limit} different findings of this {whose} within {self._period_s / 60:.0f} minutes: the "
            "further ones are occurrences of this one."
        )
