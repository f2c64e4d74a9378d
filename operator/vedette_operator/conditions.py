"""What the status says: conditions and counts from what was found and done. Pure.

The conditions follow the Kubernetes API conventions: every one is there from the first visit on, ``lastTransitionTime``
changes with ``status`` only, and each says of which generation it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vedette_operator.planning import Key, Plan, rollout_problem
from vedette_operator.rendering import Object
from vedette_operator.spec import Decision

TYPES = ("Ready", "Progressing", "Degraded", "Stalled", "AgentAvailable", "DetectorAvailable", "EndpointAvailable")


@dataclass(frozen=True)
class Condition:
    """One condition; ``status`` is ``True``, ``False`` or ``Unknown``."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class Facts:
    """What the status is made from.

    Attributes:
        decision: the mode.
        problems: mistakes in the spec, one a line; empty: none.
        found: children, by kind and name.
        plan: what was to be done in this pass.
        failures: what went wrong while doing it, in words.
        coverage: as `vedette_operator.coverage.summarise` has it.
        external: URL of a detector elsewhere; empty: there is none.
        deleting: the resource is going away.
    """

    decision: Decision
    problems: str = ""
    found: Mapping[Key, Object] | None = None
    plan: Plan = field(default_factory=Plan)
    failures: tuple[str, ...] = ()
    coverage: Mapping[str, Any] | None = None
    external: str = ""
    deleting: bool = False


def judge(facts: Facts) -> list[Condition]:
    """Every condition of a RuntimeMonitoringConfig."""
    if facts.decision.mode == "Disabled" or facts.deleting:
        return _removal(facts)
    found = facts.found or {}
    agent = _agent(found.get(("DaemonSet", "vedette-agent")), facts)
    detector = _detector(found.get(("StatefulSet", "vedette-detector")), facts)
    stalled = _stalled(facts)
    progressing = _progressing(facts, agent, detector)
    degraded = _degraded(facts, progressing)
    blockers = [c for c in (stalled, degraded) if c.status == "True"]
    blockers += [c for c in (detector, agent) if c.status != "True"]
    blockers += [progressing] if progressing.status == "True" else []
    if blockers:
        ready = Condition("Ready", "False", blockers[0].reason, blockers[0].message)
    else:
        ready = Condition("Ready", "True", "AllComponentsReady", "agents and detector are as they are wanted")
    endpoint = Condition("EndpointAvailable", "True", "NotWanted", "no VPC endpoint is wanted")
    return [ready, progressing, degraded, stalled, agent, detector, endpoint]


def _removal(facts: Facts) -> list[Condition]:
    left = [*facts.failures, *facts.plan.waiting]
    what = "the resource is being deleted" if facts.deleting else "monitoring is disabled"
    absent = "Deleting" if facts.deleting else "Disabled"
    if left:
        blocked = bool(facts.failures)
        message = f"{what}; left: {_listed(left)}"
        ready = Condition("Ready", "False", "CleanupBlocked" if blocked else "Removing", message)
        progressing = Condition("Progressing", "True", "Removing", message)
        degraded = Condition("Degraded", str(blocked), "CleanupBlocked" if blocked else "Removing", message)
    else:
        # What was asked for is in effect: kubectl wait and GitOps tools are to go on.
        ready = Condition("Ready", "True", absent, f"{what}, and nothing that the operator made is left")
        progressing = Condition("Progressing", "False", "Idle", "nothing is being changed")
        degraded = Condition("Degraded", "False", absent, what)
    parts = [Condition(f"{part}Available", "False", absent, what) for part in ("Agent", "Detector", "Endpoint")]
    return [
        ready,
        progressing,
        degraded,
        Condition("Stalled", "False", "NotStalled", "nothing stands in the way"),
        *parts,
    ]


def _agent(live: Object | None, facts: Facts) -> Condition:
    kind = "AgentAvailable"
    waiting = [text for text in facts.plan.waiting if text.startswith("the agents wait")]
    if live is None:
        if waiting:
            return Condition(kind, "False", "WaitingForDetector", waiting[0])
        reason = "NotInstalled" if facts.decision.mode == "Manual" else "Creating"
        return Condition(kind, "False", reason, "there is no DaemonSet vedette-agent")
    desired, ready, _ = agent_counts(live)
    if ready < desired:
        return Condition(kind, "False", "AgentsNotReady", f"{ready} of {desired} agents are ready")
    return Condition(kind, "True", "AgentsReady", f"all {desired} agents are ready")


def agent_counts(live: Object) -> tuple[int, int, int]:
    """Desired, ready and updated agents; nothing is known of a generation that was not taken up yet."""
    status = live.get("status") or {}
    seen = status.get("observedGeneration", 0) >= live["metadata"]["generation"]
    desired = status.get("desiredNumberScheduled", 0)
    return desired, status.get("numberReady", 0), status.get("updatedNumberScheduled", 0) if seen else 0


def _detector(live: Object | None, facts: Facts) -> Condition:
    kind = "DetectorAvailable"
    if facts.external:
        return Condition(
            kind, "True", "External", f"agents deliver to {facts.external}, which is not watched from here"
        )
    if live is None:
        reason = "NotInstalled" if facts.decision.mode == "Manual" else "Creating"
        return Condition(kind, "False", reason, "there is no StatefulSet vedette-detector")
    wanted = live["spec"].get("replicas", 1)
    ready = (live.get("status") or {}).get("readyReplicas", 0)
    if ready < wanted:
        return Condition(
            kind,
            "False",
            "DetectorNotReady",
            f"{ready} of {wanted} detectors are ready: kubectl -n "
            f"{live['metadata']['namespace']} describe pod vedette-detector-0 says why",
        )
    return Condition(kind, "True", "DetectorReady", "the detector is ready")


def _stalled(facts: Facts) -> Condition:
    if facts.problems:
        return Condition("Stalled", "True", "InvalidSpec", facts.problems)
    if facts.plan.conflicts:
        message = f"of somebody else, and not touched: {_listed(facts.plan.conflicts)}; rename or remove them"
        return Condition("Stalled", "True", "NameTaken", message)
    return Condition("Stalled", "False", "NotStalled", "nothing stands in the way")


def _progressing(facts: Facts, agent: Condition, detector: Condition) -> Condition:
    kind = "Progressing"
    if facts.decision.mode == "Manual":
        return Condition(kind, "False", "Manual", "the operator changes nothing")
    found = facts.found or {}
    stateful, daemons = found.get(("StatefulSet", "vedette-detector")), found.get(("DaemonSet", "vedette-agent"))
    if facts.plan.waiting:
        return Condition(kind, "True", "Waiting", _listed(facts.plan.waiting))
    changed = [a for a in facts.plan.actions if a.why != "Drifted"]
    if changed:
        return Condition(kind, "True", "Applying", f"{len(changed)} objects are being brought to what is wanted")
    if stateful is not None and not facts.external and (why := rollout_problem(stateful)):
        return Condition(kind, "True", "DetectorRollout", why)
    if daemons is not None:
        desired, _, updated = agent_counts(daemons)
        if updated < desired:
            return Condition(kind, "True", "AgentRollout", f"{updated} of {desired} agents are of the newest form")
    return Condition(kind, "False", "Idle", "nothing is being changed")


def _degraded(facts: Facts, progressing: Condition) -> Condition:
    kind = "Degraded"
    if facts.failures:
        return Condition(kind, "True", "ReconcileFailed", _listed(facts.failures))
    if facts.decision.problem:
        return Condition(kind, "True", "InvalidAnnotation", facts.decision.problem)
    coverage = facts.coverage or {}
    if coverage.get("coverage") == "UNHEALTHY" and progressing.status != "True":
        why = ", ".join(f"{name} ({count})" for name, count in coverage["reasons"].items())
        message = f"{coverage['summary']} nodes are covered: {why}; kubectl describe monitoredcluster local says which"
        return Condition(kind, "True", "NodesNotCovered", message)
    if coverage.get("coverage") == "UNKNOWN" and progressing.status != "True" and coverage.get("nodes"):
        return Condition(kind, "True", "CoverageUnknown", "the detector does not answer the operator")
    return Condition(kind, "False", "AsExpected", "nothing needs a look")


def covered_condition(summary: Mapping[str, Any]) -> Condition:
    """The condition of a MonitoredCluster."""
    status = {"HEALTHY": "True", "UNHEALTHY": "False"}.get(summary["coverage"], "Unknown")
    reason = {"True": "AllNodesCovered", "False": "NodesNotCovered"}.get(status, "CoverageUnknown")
    why = ", ".join(f"{name} ({count})" for name, count in summary["reasons"].items())
    return Condition("Covered", status, reason, f"{summary['summary']} nodes are covered" + (f": {why}" if why else ""))


def merge(
    now: Sequence[Condition], former: Sequence[Mapping[str, Any]], generation: int, at: str
) -> list[dict[str, Any]]:
    """Conditions as the status has them.

    Args:
        now: what is so.
        former: what the status has.
        generation: of the resource.
        at: the time now, RFC 3339.
    """
    known = {c["type"]: c for c in former}
    merged = []
    for condition in now:
        before = known.get(condition.type, {})
        same = before.get("status") == condition.status
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": before["lastTransitionTime"] if same else at,
                "observedGeneration": generation,
            }
        )
    return merged


def transitions(now: Sequence[Mapping[str, Any]], former: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Conditions whose status became another one; those never seen before count when they are bad or make it ready."""
    known = {c["type"]: c.get("status") for c in former}
    return [c for c in now if c["status"] != known.get(c["type"], "False" if c["type"] != "Ready" else "")]


def _listed(texts: Sequence[str]) -> str:
    return "; ".join(texts[:5]) + (f"; and {len(texts) - 5} more" if len(texts) > 5 else "")
