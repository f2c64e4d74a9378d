"""Coverage: whether each node's agent is alive, sees everything and delivers it, and if not, why. Pure.

A node is covered when its agent reports, every event type has a hook that works, what the kernel reported arrives, and
nothing was lost lately. Each reason against it has a stable name (CamelCase) for programs and a message for people.
Warnings tell of less: the node is covered, and somebody should look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vedette_detector.text import safe_text

LOST_WITHIN_S = 600.0
"""Losses as recent make a node uncovered. Older ones are in the ledger for good."""
STUCK_AFTER_S = 60.0
"""Batches wait in the spool and none came for so long, while heartbeats do: they do not get through."""
MAX_HOOKS = 100
NOT_NEEDED = "not needed"
"""What an agent says of a hook that another one stands in for."""


@dataclass(frozen=True)
class Lost:
    """What was lost of one node within `LOST_WITHIN_S`, by where."""

    dropped_events: int = 0
    spool_lost_events: int = 0
    spool_lost_batches: int = 0
    unexplained_batches: int = 0
    refused_batches: int = 0


@dataclass(frozen=True)
class NodeFacts:
    """What coverage is told by.

    Attributes:
        heartbeat: the newest, as the agent sent it (made safe to show); empty: none ever came.
        heartbeat_age_s: None: none ever came.
        heard_since_start: whether a heartbeat came since this detector was started.
        batch_age_s: since the newest batch; None: none ever came.
        in_cluster: whether the cluster has such a node; None: not known.
        ready: the node's Ready condition; None: not known.
    """

    node: str
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_age_s: float | None = None
    heard_since_start: bool = True
    batch_age_s: float | None = None
    lost: Lost = Lost()
    in_cluster: bool | None = None
    ready: bool | None = None


@dataclass(frozen=True)
class Reason:
    """Why a node is not covered, or what to look at."""

    reason: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return {"reason": self.reason, "message": self.message}


@dataclass(frozen=True)
class Judgement:
    """Whether a node is covered. ``gone``: it left the cluster and its agent with it, so that nothing is missing."""

    node: str
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()
    gone: bool = False

    @property
    def covered(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons and not self.gone


def hooks_of(heartbeat: Mapping[str, Any]) -> list[dict[str, str]]:
    """The hooks that a heartbeat tells of: event, hook, state, reason. Malformed entries are left out."""
    given = heartbeat.get("hooks")
    hooks = []
    for entry in given[:MAX_HOOKS] if isinstance(given, list) else []:
        if isinstance(entry, dict):
            names = ("event", "hook", "state", "reason")
            hook = {name: safe_text(str(entry.get(name) or ""), 256) for name in names}
            if hook["event"] and hook["state"] and hook["reason"] != NOT_NEEDED:
                hooks.append(hook)
    return hooks


def judge(facts: NodeFacts, *, silent_after_s: float, started_s: float) -> Judgement:
    """Judge one node.

    Args:
        facts: of the node.
        silent_after_s: time without a heartbeat after which an agent counts as silent.
        started_s: how long this detector has been running.
    """
    age = facts.heartbeat_age_s
    if facts.in_cluster is False and (age is None or age > silent_after_s):
        return Judgement(facts.node, gone=True)
    warnings = []
    if facts.in_cluster is False:
        warnings.append(Reason("NodeUnknown", "the cluster has no node of this name, and yet an agent reports for it"))
    if facts.ready is False:
        warnings.append(Reason("NodeNotReady", "Kubernetes calls the node not ready"))
    if age is None:
        return Judgement(facts.node, (Reason("NoAgent", "no agent has ever reported from this node"),), tuple(warnings))
    if age > silent_after_s:
        if not facts.heard_since_start and started_s <= silent_after_s:
            message = f"the detector was started {started_s:.0f} s ago and has not heard of the agent yet"
            return Judgement(facts.node, (Reason("NotHeardSinceStart", message),), tuple(warnings))
        message = f"no heartbeat has come for {age:.0f} s"
        return Judgement(facts.node, (Reason("AgentSilent", message),), tuple(warnings))
    reasons = []
    blind, degraded = _hook_reasons(facts.heartbeat)
    reasons += [blind] if blind is not None else []
    warnings += [degraded] if degraded is not None else []
    reasons += _delivery_reasons(facts)
    return Judgement(facts.node, tuple(reasons), tuple(warnings))


def _hook_reasons(heartbeat: Mapping[str, Any]) -> tuple[Reason | None, Reason | None]:
    """What is not seen at all, and what is seen by some of its hooks only."""
    hooks = hooks_of(heartbeat)
    if not hooks:
        return Reason("HooksMissing", "the agent names no hook that it has loaded"), None
    seen = {hook["event"] for hook in hooks if hook["state"] == "loaded"}
    missing = [hook for hook in hooks if hook["state"] != "loaded"]
    blind = [hook for hook in missing if hook["event"] not in seen]
    partly = [hook for hook in missing if hook["event"] in seen]
    return (
        Reason("HooksMissing", f"not watched: {_listed(blind)}") if blind else None,
        Reason("HooksDegraded", f"watched in part: {_listed(partly)}") if partly else None,
    )


def _listed(hooks: Sequence[Mapping[str, str]]) -> str:
    shown = [f"{h['event']} ({h['hook']} {h['state']}: {h['reason'] or 'no reason given'})" for h in hooks[:5]]
    return "; ".join(shown) + (f"; and {len(hooks) - 5} more" if len(hooks) > 5 else "")


def _delivery_reasons(facts: NodeFacts) -> list[Reason]:
    reasons = []
    lost = facts.lost
    told = [
        f"{count} {what}"
        for count, what in (
            (lost.dropped_events, "events dropped because the kernel's ring was full"),
            (lost.spool_lost_events, "events given up by the agent"),
            (lost.unexplained_batches, "batches missing without an explanation"),
            (lost.refused_batches, "batches refused"),
        )
        if count > 0
    ]
    if told:
        reasons.append(Reason("EventsLost", f"within the last {LOST_WITHIN_S / 60:.0f} min: {', '.join(told)}"))
    spool = facts.heartbeat.get("spool")
    waiting = spool.get("batches") if isinstance(spool, dict) else None
    if isinstance(waiting, int) and waiting > 0 and (facts.batch_age_s is None or facts.batch_age_s > STUCK_AFTER_S):
        since = "none has ever come" if facts.batch_age_s is None else f"the last came {facts.batch_age_s:.0f} s ago"
        reasons.append(Reason("DeliveryStuck", f"{waiting} batches wait in the agent's spool and {since}"))
    return reasons


def summary(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts over all nodes: how many are covered, and for how many each reason holds."""
    present = [j for j in judgements if not j.gone]
    by_reason: dict[str, int] = {}
    for judgement in present:
        for reason in judgement.reasons:
            by_reason[reason.reason] = by_reason.get(reason.reason, 0) + 1
    covered = sum(j.covered for j in present)
    return {
        "nodes": len(present),
        "covered": covered,
        "uncovered": len(present) - covered,
        "reasons": dict(sorted(by_reason.items())),
    }
