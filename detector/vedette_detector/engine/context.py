"""What rules and detectors are given beside event and history, and how they make a detection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import AF_INET, AF_INET6, Event, address_text
from vedette_detector.engine.history import HistorySettings, NodeHistory, Process
from vedette_detector.text import safe_text
from vedette_detector.threat_lists import ThreatLists

_PROTOCOLS = {6: "TCP", 17: "UDP", 1: "ICMP", 58: "ICMPV6", 132: "SCTP"}
_STREAM, _DATAGRAM = 1, 2
_EPERM, _EACCES = -1, -13
_MAX_ARGUMENTS = 64
_MAX_ARGUMENT = 512
_NONE_MADE: tuple[int, Detection | None] = (0, None)


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine.

    Attributes:
        history: bounds of one node's history.
        all_nodes_bytes: bound for the histories of all nodes of one worker, bytes; nodes over their share give up
            their oldest events first.
        repeats_after: how many detections with the same key, process and batch are made in full; further ones only
            raise ``repeats`` of the last.
        confirm_budget_s: CPU seconds that confirming one node's candidates may take in each period.
        confirm_period_s: length of the period, seconds of the node's clock.
        options: settings of detectors, by name.
    """

    history: HistorySettings = field(default_factory=HistorySettings)
    all_nodes_bytes: int = 1024 * 1024 * 1024
    repeats_after: int = 3
    confirm_budget_s: float = 2.0
    confirm_period_s: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class EngineContext:
    """Passed to every rule and detector.

    Attributes:
        threats: the loaded threat lists.
        settings: the engine's settings.
        rule_id: id of the rule or detector that is asked now.
        title: its title.
        triage: its triage notes.
        severity: its default severity.
        finding_type: its default finding type.
    """

    threats: ThreatLists
    settings: EngineSettings = field(default_factory=EngineSettings)
    rule_id: str = ""
    title: str = ""
    triage: str = ""
    severity: float = 5.0
    finding_type: str = ""
    _lineages: dict[tuple[int, int, int], list[dict[str, Any]]] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], tuple[int, Detection | None]] = field(default_factory=dict)

    def enter(self, unit: Any) -> None:
        """Take over the defaults of the rule or detector that is asked next."""
        self.rule_id = unit.id
        self.title = unit.title
        self.triage = getattr(unit, "triage", "")
        self.severity = getattr(unit, "severity", 5.0)
        self.finding_type = getattr(unit, "finding_type", "") or next(iter(getattr(unit, "finding_types", ())), "")

    def detection(
        self,
        event: Event,
        *,
        finding_type: str | None = None,
        severity: float | None = None,
        title: str | None = None,
        description: str = "",
        key: Sequence[str] = (),
        context: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        evidence: dict[str, Any] | None = None,
        notes: Iterable[str] = (),
        triage: str | None = None,
        related: Iterable[Event] = (),
        process: Process | None = None,
    ) -> Detection:
        """Make a detection for an event, with process, lineage, container and (connect, dns) action filled in.

        Args:
            event: the hit.
            finding_type: GuardDuty's type; default the rule's.
            severity: 1.0 to 10.0; default the rule's.
            title: one line; default the rule's.
            description: one or two sentences of safe text.
            key: aggregation parameters beside type and resource.
            context: GuardDuty RuntimeContext keys.
            action: GuardDuty Action; default made from a connect, accept or dns event.
            evidence: GuardDuty Evidence.
            notes: what a person should know.
            triage: what to look at; default the rule's.
            related: events to show with the finding.
            process: whose process it is; default the acting process.
        """
        history = event.history
        acting = process or event.process
        kind = finding_type or self.finding_type
        # A flood of the same thing (a loop that writes to one file) is counted, not described again and again.
        same = (self.rule_id, kind, tuple(key), acting.pid, acting.start, event.type)
        count, last = self._made.get(same, _NONE_MADE)
        if last is not None and count >= self.settings.repeats_after:
            last.repeats += 1
            return last
        container = event.container
        made = Detection(
            finding_type=kind,
            severity=self.severity if severity is None else severity,
            rule_id=self.rule_id,
            title=self.title if title is None else title,
            description=description,
            key=tuple(key),
            node=event.node,
            time_ns=event.time,
            wall=event.wall,
            event=event.as_dict(),
            process=process_details(acting, history),
            lineage=self._lineage(acting, history),
            context=dict(context or {}),
            action=action if action is not None else action_of(event),
            evidence=evidence,
            container=container,
            host_process=container is None,
            notes=list(notes),
            triage=self.triage if triage is None else triage,
            related_events=[e.as_dict() for e in related],
        )
        self._made[same] = (count + 1, made)
        return made

    def _lineage(self, process: Process, history: NodeHistory) -> list[dict[str, Any]]:
        """The ancestors as GuardDuty's ``LineageObject``, written once for each process of a batch."""
        key = (process.pid, process.start, process.time)
        found = self._lineages.get(key)
        if found is None:
            found = self._lineages[key] = [lineage_object(p, history) for p in history.lineage(process)]
        return [dict(ancestor) for ancestor in found]


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as GuardDuty writes it."""
    return moment.replace(tzinfo=None).isoformat("T", "milliseconds") + "Z"


def user_name(uid: int) -> str:
    """``root`` or the number: the detector does not know the node's (or the container's) user database."""
    return "root" if uid == 0 else str(uid)


def process_details(process: Process, history: NodeHistory) -> dict[str, Any]:
    """GuardDuty's ``ProcessDetails`` without its lineage, and ``arguments`` besides."""
    out: dict[str, Any] = {
        "name": process.name,
        "executablePath": safe_text(process.path),
        "namespacePid": process.ns_pid,
        "pwd": safe_text(process.cwd),
        "pid": process.pid,
        "startTime": timestamp(history.wall(process.start)),
        "uuid": process.uuid,
        "parentUuid": process.parent_uuid,
        "user": user_name(process.uid),
        "userId": process.uid,
        "euid": process.euid,
        "arguments": [safe_text(arg[:_MAX_ARGUMENT]) for arg in process.argv[:_MAX_ARGUMENTS]],
    }
    digest = history.file_hash(process.dev, process.ino, process.ctime) if process.ino else None
    if digest is not None:
        out["executableSha256"] = digest
    return out


def lineage_object(process: Process, history: NodeHistory) -> dict[str, Any]:
    """GuardDuty's ``LineageObject``."""
    return {
        "startTime": timestamp(history.wall(process.start)),
        "namespacePid": process.ns_pid,
        "userId": process.uid,
        "name": process.name,
        "pid": process.pid,
        "uuid": process.uuid,
        "executablePath": safe_text(process.path),
        "euid": process.euid,
        "parentUuid": process.parent_uuid,
    }


def action_of(event: Event) -> dict[str, Any] | None:
    """GuardDuty's ``Action`` of a connect, accept or dns event; None for others."""
    if event.type in ("connect", "accept") and event.family in (AF_INET, AF_INET6):
        protocol = _PROTOCOLS.get(event.protocol)
        if protocol is None:
            protocol = {_STREAM: "TCP", _DATAGRAM: "UDP"}.get(event.sock_type, str(event.protocol))
        return {
            "actionType": "NETWORK_CONNECTION",
            "networkConnectionAction": {
                "blocked": event.result in (_EPERM, _EACCES),
                "connectionDirection": "OUTBOUND" if event.type == "connect" else "INBOUND",
                "protocol": protocol,
                "localPortDetails": {"port": event.lport, "portName": "Unknown"},
                "localIpDetails": _ip_details(event.family, event.laddr),
                "remoteIpDetails": _ip_details(event.family, event.raddr),
                "remotePortDetails": {"port": event.rport, "portName": "Unknown"},
            },
        }
    if event.type == "dns":
        return {
            "actionType": "DNS_REQUEST",
            "dnsRequestAction": {
                "domain": safe_text(event.dns_question),
                "protocol": _PROTOCOLS.get(event.protocol, "UDP"),
                "blocked": False,
            },
        }
    return None


def _ip_details(family: int, raw: bytes) -> dict[str, str]:
    text = address_text(family, raw)
    return {"ipAddressV6" if ":" in text else "ipAddressV4": text}
