"""Backdoor:Runtime/C&CActivity.B and .B!DNS: traffic with an address or a name on a threat list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.connections import IORING_OP_CONNECT
from vedette_detector.detectors.detector import Detector
from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import Mask, Selector
from vedette_detector.text import safe_text
from vedette_detector.threat_lists import ThreatMatch

_FAMILIES = {2: "IPv4", 10: "IPv6"}


def _evidence(match: ThreatMatch) -> dict[str, Any]:
    return {"threatIntelligenceDetails": [{"threatListName": match.list_name, "threatNames": [match.threat_name]}]}


def _query(*labels: bytes, flags: bytes = b"\x01\x00") -> bytes:
    """A DNS message with one question of type A."""
    name = b"".join(bytes((len(label),)) + label for label in labels)
    return b"\x12\x34" + flags + b"\0\x01\0\0\0\0\0\0" + name + b"\0\0\x01\0\x01"


class ListedAddress(Detector):
    """A connection, or a first datagram, to an address on a threat list; attempts count."""

    id = "c2-address"
    title = "A process communicates with an address on a threat list"
    description = "connect(2), or the first datagram, to a listed IPv4 or IPv6 address or network."
    finding_types = ("Backdoor:Runtime/C&CActivity.B",)
    severity = 8.0
    selectors = (
        Selector("connect", threat="ip"),
        # A server that its master calls: who accepts from a listed address talks to it all the same.
        Selector("accept", threat="ip"),
        Selector("io_uring", (Mask("opcode", "eq", IORING_OP_CONNECT),), threat="ip"),
    )
    triage = (
        "See which program it is and who started it (lineage). Look for other connections of the process and of its "
        "container with `vedette events --type connect`. Check how fresh the list's entry is: addresses change hands."
    )
    falsepositives = ("An address on the list that is shared (hosting, CDN) or no longer bad.",)
    tags = ("attack.command_and_control", "attack.t1071")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Look the address up and say which list names it."""
        match = context.threats.lookup_ip(event.raddr_text)
        if match is None:
            return
        process = event.process
        yield context.detection(
            event,
            description=f"{process.name} communicates with {event.raddr_text}, which is on the list {match.list_name}.",
            key=(process.name, event.raddr_text),
            context={
                "addressFamily": _FAMILIES.get(event.family, str(event.family)),
                "ianaProtocolNumber": event.protocol,
            },
            evidence=_evidence(match),
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "TCP to a listed address",
            "match": True,
            "threats": ["203.0.113.77"],
            "events": [
                {"event": "exec", "path": "/usr/bin/app", "argv": ["app"]},
                {"event": "connect", "family": 2, "raddr": "203.0.113.77", "rport": 443, "sock_type": 1},
            ],
        },
        {
            "name": "an attempt that was refused, in a container",
            "match": True,
            "threats": ["203.0.113.0/24"],
            "events": [
                {
                    "event": "connect",
                    "container": True,
                    "family": 2,
                    "raddr": "203.0.113.9",
                    "sock_type": 1,
                    "result": -111,
                }
            ],
        },
        {
            "name": "a datagram to a listed IPv6 network",
            "match": True,
            "threats": ["2001:db8:bad::/48"],
            "events": [{"event": "connect", "family": 10, "raddr": "2001:db8:bad::1", "sock_type": 2, "protocol": 17}],
        },
        {
            "name": "a connection accepted from a listed address",
            "match": True,
            "threats": ["203.0.113.77"],
            "events": [{"event": "accept", "family": 2, "raddr": "203.0.113.77", "sock_type": 1}],
        },
        {
            "name": "a connection by io_uring",
            "match": True,
            "threats": ["203.0.113.77"],
            "events": [{"event": "io_uring", "opcode": 16, "family": 2, "raddr": "203.0.113.77", "rport": 443}],
        },
        {
            "name": "another address",
            "match": False,
            "threats": ["203.0.113.77"],
            "events": [{"event": "connect", "family": 2, "raddr": "203.0.113.78", "sock_type": 1}],
        },
        {
            "name": "no list loaded",
            "match": False,
            "events": [{"event": "connect", "family": 2, "raddr": "203.0.113.77", "sock_type": 1}],
        },
    )


class ListedDomain(Detector):
    """A DNS query for a name on a threat list, or below one."""

    id = "c2-domain"
    title = "A process looks up a domain on a threat list"
    description = "A DNS query, over UDP or TCP, for a listed domain or a name below it."
    finding_types = ("Backdoor:Runtime/C&CActivity.B!DNS",)
    severity = 8.0
    selectors = (Selector("dns", (Mask("direction", "eq", 1),), threat="domain"),)
    triage = (
        "The process that asked may be a resolver (systemd-resolved, coredns, dnsmasq) that asks for others: look for "
        "the same name asked in other containers at the same time. Otherwise as for C&CActivity.B."
    )
    falsepositives = ("A DNS server that forwards its clients' queries; each client's own query is a finding too.",)
    tags = ("attack.command_and_control", "attack.t1071.004", "attack.t1568")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Look the name up and say which list names it."""
        question = event.dns_question
        match = context.threats.lookup_domain(question) if question else None
        if match is None:
            return
        process = event.process
        name = safe_text(question)
        yield context.detection(
            event,
            description=f"{process.name} asks for {name}, which is on the list {match.list_name}.",
            key=(process.name, name),
            evidence=_evidence(match),
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a listed domain",
            "match": True,
            "threats": ["c2.vedette.example"],
            "events": [{"event": "dns", "direction": 1, "payload": _query(b"c2", b"vedette", b"example")}],
        },
        {
            "name": "a name below it, in capitals",
            "match": True,
            "threats": ["vedette.example"],
            "events": [{"event": "dns", "direction": 1, "payload": _query(b"C2", b"VEDETTE", b"EXAMPLE")}],
        },
        {
            "name": "an answer is not a second query",
            "match": False,
            "threats": ["c2.vedette.example"],
            "events": [
                {"event": "dns", "direction": 2, "payload": _query(b"c2", b"vedette", b"example", flags=b"\x81\x80")}
            ],
        },
        {
            "name": "another domain",
            "match": False,
            "threats": ["example.com"],
            "events": [{"event": "dns", "direction": 1, "payload": _query(b"c2", b"vedette", b"example")}],
        },
    )
