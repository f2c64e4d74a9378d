"""From a detection to GuardDuty finding JSON (schema 2.0). Pure.

Field names and nesting are GuardDuty's (botocore's model of it, and
docs.aws.amazon.com/guardduty/latest/APIReference/API_Finding.html). What GuardDuty has no field for lies under the one
key ``vedette``, described in ``docs/findings-format.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from vedette_detector.engine.detection import Detection
from vedette_detector.findings import catalog
from vedette_detector.findings.model import FindingUpdate, finding_id, iso
from vedette_detector.findings.resource import Host, Resource
from vedette_detector.text import Redactor, safe, safe_text

FORMAT_VERSION = 1
"""``vedette.version``: of our additions."""
MAX_RELATED = 20
"""Raw events kept with a finding."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

PROCESS_KEYS = frozenset(
    [
        "name",
        "executablePath",
        "executableSha256",
        "namespacePid",
        "pwd",
        "pid",
        "startTime",
        "uuid",
        "parentUuid",
        "user",
        "userId",
        "euid",
    ]
)
LINEAGE_KEYS = frozenset(
    ["startTime", "namespacePid", "userId", "name", "pid", "uuid", "executablePath", "euid", "parentUuid"]
)
CONTEXT_KEYS = frozenset(
    [
        "modifyingProcess",
        "modifiedAt",
        "scriptPath",
        "libraryPath",
        "ldPreloadValue",
        "socketPath",
        "runcBinaryPath",
        "releaseAgentPath",
        "mountSource",
        "mountTarget",
        "fileSystemType",
        "flags",
        "moduleName",
        "moduleFilePath",
        "moduleSha256",
        "shellHistoryFilePath",
        "targetProcess",
        "addressFamily",
        "ianaProtocolNumber",
        "memoryRegions",
        "toolName",
        "toolCategory",
        "serviceName",
        "commandLineExample",
        "threatFilePath",
        "fileOperation",
        "filePath",
        "relatedFilePaths",
    ]
)
_CONTEXT_PROCESSES = ("modifyingProcess", "targetProcess")
_CONTEXT_LISTS = ("flags", "memoryRegions", "relatedFilePaths")
_CONTEXT_INTEGERS = ("ianaProtocolNumber",)


@dataclass(frozen=True)
class Identity:
    """In whose name findings are made."""

    account_id: str = "000000000000"
    region: str = "local"
    partition: str = "aws"
    detector_id: str = "0" * 32
    cluster: str = ""

    def arn(self, finding: str) -> str:
        """ARN of a finding."""
        owner = f"arn:{self.partition}:guardduty:{self.region}:{self.account_id}"
        return f"{owner}:detector/{self.detector_id}/finding/{finding}"


def epoch_ns(moment: datetime) -> int:
    """Nanoseconds since the epoch, without the rounding of floating point."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def build(
    detection: Detection, resource: Resource, host: Host, identity: Identity, redactor: Redactor
) -> FindingUpdate:
    """Make the finding that one detection amounts to.

    `vedette_detector.findings.model.fold_document` later joins it with what is stored.
    """
    kind = catalog.lookup(detection.finding_type)
    key = [safe_text(str(part), 1024) for part in detection.key]
    identifier = finding_id(kind.name, resource.type, resource.scope, key)
    seen = epoch_ns(detection.wall)
    seen_text = iso(seen)
    arguments: dict[str, Any] = {}
    process = _process(detection.process, "process", arguments)
    process["lineage"] = [_pruned(p, LINEAGE_KEYS) for p in detection.lineage[:32]]
    context, more_context = _context(detection.context, arguments)
    names = {
        "process": process.get("name") or "A process",
        "where": {"Container": "a container", "EKSCluster": "a pod"}.get(resource.type, "the host"),
    }
    title = safe_text(detection.title or kind.title.format_map(names), 512)
    description = safe_text(detection.description or _describe(title, process, resource), 2048)
    count = 1 + max(0, detection.repeats)
    severity = min(10.0, max(1.0, float(detection.severity)))
    service: dict[str, Any] = {
        "serviceName": "guardduty",
        "detectorId": identity.detector_id,
        "featureName": "RuntimeMonitoring",
        "archived": False,
        "count": count,
        "eventFirstSeen": seen_text,
        "eventLastSeen": seen_text,
        "additionalInfo": {"type": "default", "value": _additional_info(detection, host)},
        "runtimeDetails": {"process": process},
    }
    if context:
        service["runtimeDetails"]["context"] = redactor.tree(context)
    if detection.action:
        service["action"] = safe(detection.action)
    if detection.evidence:
        service["evidence"] = safe(detection.evidence)
    ours: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "ruleId": safe_text(detection.rule_id, 256),
        "aggregationKey": key,
        "arguments": arguments,
        "hostProcess": detection.host_process,
        "notes": [safe_text(note, 1024) for note in detection.notes[:32]],
        "triage": safe_text(detection.triage, 8192) if "\n" not in detection.triage else _lines(detection.triage),
        "host": resource.host,
        "event": safe(detection.event),
        "relatedEvents": [safe(e) for e in detection.related_events[:MAX_RELATED]],
    }
    if resource.container is not None:
        ours["container"] = resource.container
    if resource.kubernetes is not None:
        ours["kubernetes"] = with_occurrence(resource.kubernetes, host.node, seen_text, count)
    if more_context:
        ours["context"] = more_context
    if identity.cluster:
        ours["cluster"] = identity.cluster
    document = {
        "schemaVersion": "2.0",
        "accountId": identity.account_id,
        "region": identity.region,
        "partition": identity.partition,
        "id": identifier,
        "arn": identity.arn(identifier),
        "type": kind.name,
        "severity": severity,
        "title": redactor.text(title),
        "description": redactor.text(description),
        "createdAt": seen_text,
        "updatedAt": seen_text,
        "resource": resource.document,
        "service": service,
        "vedette": redactor.tree(ours),
    }
    return FindingUpdate(
        id=identifier,
        type=kind.name,
        node=host.node,
        resource_type=resource.type,
        resource_id=resource.id,
        document=document,
        occurrences=((seen, document),),
        count=count,
        first_seen_ns=seen,
        last_seen_ns=seen,
    )


def _lines(text: str) -> str:
    """Triage notes keep their line breaks: they are written by the rule's author."""
    return "\n".join(safe_text(line, 1024) for line in text.splitlines()[:100])


def with_occurrence(kubernetes: Mapping[str, Any], node: str, seen: str, count: int) -> dict[str, Any]:
    """``vedette.kubernetes`` with this occurrence's pod as the first of those that the finding is about."""
    pod = kubernetes.get("pod")
    if not pod:
        return dict(kubernetes)
    entry = {
        "name": pod["name"],
        "uid": pod["uid"],
        "node": safe_text(node, 256),
        "firstSeen": seen,
        "lastSeen": seen,
        "count": count,
    }
    return {**kubernetes, "pods": [entry]}


def _describe(title: str, process: Mapping[str, Any], resource: Resource) -> str:
    path = process.get("executablePath") or "an unknown executable"
    return f"{title.rstrip('.')}: {path} (pid {process.get('pid', 'unknown')}) on {resource.where}."


def _pruned(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {k: safe(v) for k, v in values.items() if k in keys and v is not None}


def _process(values: Mapping[str, Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """GuardDuty's ProcessDetails; the arguments, which it withholds, go to ``arguments``."""
    given = values.get("arguments")
    if given:
        arguments[name] = [safe_text(str(a)) for a in given]
    process = _pruned(values, PROCESS_KEYS)
    lineage = values.get("lineage")
    if lineage:
        process["lineage"] = [_pruned(p, LINEAGE_KEYS) for p in lineage]
    return process


def _context(values: Mapping[str, Any], arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """GuardDuty's RuntimeContext, and what it has no key for."""
    context: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        if key not in CONTEXT_KEYS:
            more[safe_text(str(key), 256)] = safe(value)
        elif key in _CONTEXT_PROCESSES:
            context[key] = _process(value, key, arguments)
        elif key in _CONTEXT_LISTS:
            items = value if isinstance(value, list | tuple) else [value]
            context[key] = [safe_text(str(v)) for v in items][:25]
        elif key in _CONTEXT_INTEGERS:
            context[key] = int(value)
        elif isinstance(value, datetime):
            context[key] = iso(epoch_ns(value))
        else:
            context[key] = safe_text(value if isinstance(value, bytes) else str(value))
    return context, more


def _additional_info(detection: Detection, host: Host) -> str:
    """GuardDuty's ``additionalInfo.value``: a JSON document as text."""
    value: dict[str, Any] = {"agentDetails": {"agentVersion": host.agent_version, "agentId": safe_text(host.node, 256)}}
    threats = (detection.evidence or {}).get("threatIntelligenceDetails")
    if isinstance(threats, list) and threats and isinstance(threats[0], dict):
        first = safe(threats[0])
        value["threatListName"] = first.get("threatListName", "")
        names = first.get("threatNames")
        if names:
            value["threatName"] = names[0]
    return json.dumps(value, separators=(",", ":"))
