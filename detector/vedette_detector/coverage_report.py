"""``/v1/coverage`` and its metrics: gathers what is known of each node and has `vedette_detector.coverage` judge it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vedette_detector.coverage import LOST_WITHIN_S, Judgement, Lost, NodeFacts, hooks_of, judge, summary
from vedette_detector.findings.model import iso
from vedette_detector.intake import Intake
from vedette_detector.ledger import NoteKind, Totals
from vedette_detector.liveness import Liveness
from vedette_detector.metrics import metric
from vedette_detector.store import Losses, Store

KEPT_S = 5.0
"""A judgement of all nodes is used again for so long: metrics and operator may ask as often as they like."""
PATIENCE_S = 1.0
"""Time after which metrics are rendered from the last judgement: a database that hangs must not hold them up."""
SERIES = 5000
"""Nodes with a metric of their own."""
_NOT_SHOWN = ("node", "batches", "first_at_ns", "last_at_ns")


class ClusterNode(Protocol):
    """What coverage needs of a node that Kubernetes knows."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def ready(self) -> bool:
        """Its Ready condition."""


class CoverageReport:
    """Coverage of all nodes that an agent or the cluster tells of.

    Args:
        cluster: the cluster's nodes; None where they are not watched, or not known yet.
        watched: whether the detector watches a cluster.
    """

    def __init__(
        self,
        liveness: Liveness,
        intake: Intake,
        store: Store,
        cluster: Callable[[], Sequence[ClusterNode] | None],
        *,
        watched: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._liveness = liveness
        self._intake = intake
        self._store = store
        self._cluster = cluster
        self._watched = watched
        self._clock = clock
        self._judging: asyncio.Task[tuple[list[Judgement], dict[str, NodeFacts]]] | None = None
        self._judged: tuple[float, list[Judgement], dict[str, NodeFacts]] | None = None

    async def _judge(self, *, anew: bool) -> tuple[list[Judgement], dict[str, NodeFacts]]:
        now = self._clock()
        if not anew and self._judged is not None and now - self._judged[0] < KEPT_S:
            return self._judged[1], self._judged[2]
        since = time.time_ns() - int(LOST_WITHIN_S * 1e9)
        losses = await self._intake.in_store_thread(lambda: self._store.losses(since))
        cluster = self._cluster()
        in_cluster = {node.name: node for node in cluster} if cluster is not None else None
        names = sorted({*self._liveness.nodes, *self._intake.newest, *(in_cluster or {})})
        facts = {name: self._facts(name, losses.get(name, {}), in_cluster) for name in names}
        started_s = self._clock() - self._liveness.started_s
        judged = [
            judge(fact, silent_after_s=self._liveness.silent_after_s, started_s=started_s) for fact in facts.values()
        ]
        self._judged = (now, judged, facts)
        return judged, facts

    def _facts(
        self, node: str, losses: Mapping[NoteKind, Losses], in_cluster: Mapping[str, ClusterNode] | None
    ) -> NodeFacts:
        liveness = self._liveness
        heard, age = liveness.heard(node), liveness.age_s(node)
        known = in_cluster.get(node) if in_cluster is not None else None

        def of(kind: NoteKind) -> Losses:
            return losses.get(kind, Losses(0, 0, 0, 0))

        missing = of(NoteKind.BATCHES_MISSING).batches
        return NodeFacts(
            node,
            heard.heartbeat if heard is not None else {},
            age,
            age is not None and not liveness.before_start(age),
            liveness.batch_age_s(node),
            Lost(
                of(NoteKind.KERNEL_DROPS).events,
                of(NoteKind.SPOOL_LOSS).events,
                of(NoteKind.SPOOL_LOSS).batches,
                # What the agent has explained since is no more unexplained, whenever the gap was seen. Over all
                # sessions, as a new one makes up for nothing.
                min(missing, self._sums(node).unexplained_batches) if missing else 0,
                of(NoteKind.BATCH_REJECTED).batches,
            ),
            node in in_cluster if in_cluster is not None else None,
            known.ready if known is not None else None,
        )

    def _sums(self, node: str) -> Totals:
        """Over all sessions of a node."""
        sums = self._intake.sessions.totals.get(node, Totals(node))
        for account in self._intake.sessions.of_node(node):
            sums = sums.plus(account)
        return sums

    async def document(self) -> dict[str, Any]:
        """What ``GET /v1/coverage`` answers; see docs/ingest.md."""
        judged, facts = await self._judge(anew=True)
        return {
            "at": iso(time.time_ns()),
            "kubernetes": {"watched": self._watched, "synced": self._cluster() is not None if self._watched else None},
            "summary": summary(judged),
            "nodes": [self._node(j, facts[j.node]) for j in judged if not j.gone],
            "gone": [j.node for j in judged if j.gone],
        }

    def _node(self, judgement: Judgement, facts: NodeFacts) -> dict[str, Any]:
        node, heartbeat = judgement.node, facts.heartbeat
        heard, newest = self._liveness.heard(node), self._intake.newest.get(node)
        sums = self._sums(node)
        hooks = hooks_of(heartbeat)
        version = heartbeat.get("agent_version") or (newest.agent_version if newest is not None else None)
        return {
            "node": node,
            "covered": judgement.covered,
            "reasons": [r.as_dict() for r in judgement.reasons],
            "warnings": [w.as_dict() for w in judgement.warnings],
            "agent": {
                "version": version,
                "session": heartbeat.get("session"),
                "started_at": heartbeat.get("started_at"),
            },
            "hooks": {
                "loaded": sum(h["state"] == "loaded" for h in hooks),
                "missing": [h for h in hooks if h["state"] != "loaded"],
            },
            "heartbeat": {"at": iso(heard.at_ns) if heard is not None else None, "age_s": facts.heartbeat_age_s},
            "batch": {"at": iso(newest.last_at_ns) if newest is not None else None, "age_s": facts.batch_age_s},
            "ledger": {k: v for k, v in vars(sums).items() if k not in _NOT_SHOWN},
            "cluster": {"known": facts.in_cluster, "ready": facts.ready},
        }

    async def metrics(self) -> str:
        """Prometheus text."""
        if self._judging is None or self._judging.done():
            self._judging = asyncio.create_task(self._judge(anew=False), name="coverage")
        await asyncio.wait([self._judging], timeout=PATIENCE_S)
        if self._judging.done() and not self._judging.cancelled() and self._judging.exception() is None:
            judged, _ = self._judging.result()
        else:
            judged = self._judged[1] if self._judged is not None else []
        present = [j for j in judged if not j.gone]
        counts = summary(judged)
        return "".join(
            (
                metric(
                    "vedette_node_covered",
                    "gauge",
                    "1 when the node's agent is alive, sees everything and delivers it.",
                    [({"node": j.node}, float(j.covered)) for j in present[:SERIES]],
                ),
                metric(
                    "vedette_nodes_covered",
                    "gauge",
                    "Nodes that are covered.",
                    [({}, float(counts["covered"]))],
                ),
                metric(
                    "vedette_nodes_uncovered",
                    "gauge",
                    "Nodes that are not covered, by reason; a node may have several.",
                    [({"reason": k}, float(v)) for k, v in counts["reasons"].items()],
                ),
            )
        )
