"""How occurrences become one finding: identity and folding. Pure.

A finding is identified by its type, what it is about (the resource) and the aggregation key of its type. For pods the
resource is the workload: the finding lists the pods (``vedette.kubernetes.pods``), and a pod that it did not list yet
takes it out of the archive, because nobody has looked at that one. Repeats
raise ``service.count``, move ``service.eventLastSeen`` and replace the details by the latest occurrence's, as
GuardDuty does (guardduty/latest/ug/finding-aggregation); the severity is never lowered by a repeat, and earlier
occurrences stay readable as such.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class FindingUpdate:
    """New occurrences of one finding out of one group of batches.

    Attributes:
        id: 32 hex digits.
        document: the finding as the latest occurrence makes it.
        occurrences: (ns since the epoch, document) of each occurrence that is kept in full, oldest first.
        count: occurrences, those not kept in full included.
    """

    id: str
    type: str
    node: str
    resource_type: str
    resource_id: str
    document: dict[str, Any]
    occurrences: Sequence[tuple[int, dict[str, Any]]]
    count: int
    first_seen_ns: int
    last_seen_ns: int


def finding_id(finding_type: str, resource_type: str, resource_id: str, key: Sequence[str]) -> str:
    """32 hex digits made of what identifies a finding."""
    identity = json.dumps([finding_type, resource_type, resource_id, list(key)], ensure_ascii=True)
    return hashlib.sha256(identity.encode("ascii")).hexdigest()[:32]


def iso(ns: int) -> str:
    """ISO 8601 in UTC with milliseconds, as GuardDuty writes times; clamped to the years that exist."""
    ms = max(-62_135_596_800_000, min(ns // 1_000_000, 253_402_300_799_999))
    moment = datetime.fromtimestamp(ms // 1000, UTC) if ms >= 0 else datetime(1970, 1, 1, tzinfo=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


MAX_PODS = 50
"""Pods listed with a finding: those seen last."""


def join_pods(before: dict[str, Any], document: dict[str, Any]) -> bool:
    """Add the pods that ``before`` lists to those of ``document``, in place; whether the latter had a new one."""
    kubernetes = document.get("vedette", {}).get("kubernetes")
    if not isinstance(kubernetes, dict) or not kubernetes.get("pods"):
        return False
    listed = {p["uid"]: p for p in before.get("vedette", {}).get("kubernetes", {}).get("pods", ())}
    more = before.get("vedette", {}).get("kubernetes", {}).get("morePods", 0)
    new = False
    for pod in kubernetes["pods"]:
        known = listed.get(pod["uid"])
        new = new or known is None
        listed[pod["uid"]] = pod if known is None else _seen_again(known, pod)
    pods = sorted(listed.values(), key=lambda p: str(p["lastSeen"]), reverse=True)
    kubernetes = {**kubernetes, "pods": pods[:MAX_PODS]}
    if more or len(pods) > MAX_PODS:
        kubernetes["morePods"] = more + max(0, len(pods) - MAX_PODS)
    document["vedette"] = {**document["vedette"], "kubernetes": kubernetes}
    return new


def _seen_again(known: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    first, last = min(known["firstSeen"], pod["firstSeen"]), max(known["lastSeen"], pod["lastSeen"])
    return {**pod, "firstSeen": first, "lastSeen": last, "count": known["count"] + pod["count"]}


def collect(updates: Sequence[FindingUpdate], kept: int) -> list[FindingUpdate]:
    """Join updates of the same finding (in order of occurrence) to one each; of occurrences the last ``kept`` stay."""
    joined: dict[str, FindingUpdate] = {}
    for update in updates:
        before = joined.get(update.id)
        if before is None:
            joined[update.id] = update
            continue
        severity = max(before.document["severity"], update.document["severity"])
        document = {**update.document, "severity": severity}
        join_pods(before.document, document)
        joined[update.id] = FindingUpdate(
            update.id,
            update.type,
            update.node,
            update.resource_type,
            update.resource_id,
            document,
            (*before.occurrences, *update.occurrences)[-kept:],
            before.count + update.count,
            min(before.first_seen_ns, update.first_seen_ns),
            max(before.last_seen_ns, update.last_seen_ns),
        )
    return list(joined.values())


def fold_document(known: dict[str, Any] | None, update: FindingUpdate, now_ns: int) -> dict[str, Any]:
    """The finding's document after ``update``."""
    document = {**update.document, "service": dict(update.document["service"])}
    service = document["service"]
    first, last = iso(update.first_seen_ns), iso(update.last_seen_ns)
    document["updatedAt"] = iso(now_ns)
    if known is None:
        document["createdAt"] = iso(now_ns)
        service.update(count=update.count, eventFirstSeen=first, eventLastSeen=last, archived=False)
        return document
    before = known["service"]
    new_pod = join_pods(known, document)
    document["createdAt"] = known["createdAt"]
    document["severity"] = max(known["severity"], document["severity"])
    service.update(
        count=before["count"] + update.count,
        eventFirstSeen=min(before["eventFirstSeen"], first),
        eventLastSeen=max(before["eventLastSeen"], last),
        archived=before["archived"] and not new_pod,
    )
    if "userFeedback" in before:
        service["userFeedback"] = before["userFeedback"]
    return document
