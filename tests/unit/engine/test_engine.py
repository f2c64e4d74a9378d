"""The engine end to end: detections, containment of faults, replay, repeats, boots, bounds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from vedette_detector.engine import (
    AnyLiteral,
    Detection,
    EngineContext,
    EngineSettings,
    Event,
    HistorySettings,
    Mask,
    NodeHistory,
    Selector,
)
from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import Ruleset, load_rule_text
from vedette_detector.sigma.rule_tests import CONTAINER_PATH, encode_events, make_header
from vedette_detector.threat_lists import ThreatLists
from vedette_events.encode import encode_event
from vedette_events.framing import BatchError, encode_batch

RULE = """
title: A scanner was run
id: 00000000-0000-4000-8000-000000000001
description: "{Image} was run by {ParentImage}."
logsource: {product: linux, category: process_creation}
detection:
  selection: {Image|endswith: /nmap}
  condition: selection
level: high
vedette:
  finding: Execution:Runtime/SuspiciousTool
  severity: 6.5
  key: [Image]
  context: {toolName: "{Image}", flags: ["{User}"]}
  notes: ["started with {CommandLine}"]
  triage: Look at it.
"""


def rules(text: str = RULE) -> Ruleset:
    loaded = load_rule_text(text)
    assert loaded.errors == []
    return loaded


@dataclass
class Unit:
    selectors: tuple[Selector, ...]
    error: Exception | None = None
    id: str = "unit"
    title: str = "Unit"
    finding_type: str = "Execution:Runtime/Test"

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        if self.error is not None:
            raise self.error
        return (context.detection(event, key=[event.type]),)


def process(engine: Engine, *events: dict[str, Any], **header: Any) -> Any:
    records, _ = encode_events(events)
    return engine.process(replace(make_header(), **header), records)


def test_a_detection_tells_all_that_is_known() -> None:
    outcome = process(
        Engine(rules()),
        {
            "event": "exec",
            "path": "/bin/bash",
            "argv": ["bash"],
            "pid": 6,
            "ppid": 1,
            "cwd": "/root",
            "container": True,
        },
        {"event": "file_hash", "ino": 5, "dev": 6, "ctime": 7, "sha256": b"\xab" * 32},
        {
            "event": "exec",
            "path": "/usr/bin/nmap",
            "argv": ["nmap", "-sS\x1b[0m"],
            "pid": 7,
            "ppid": 6,
            "ns_pid": 3,
            "uid": 33,
            "ino": 5,
            "dev": 6,
            "ctime": 7,
            "cwd": "/tmp",
            "container": True,
            "file_bits": "UPPER|OVERLAY",
        },
    )
    (found,) = outcome.detections
    assert found.finding_type == "Execution:Runtime/SuspiciousTool"
    assert (found.severity, found.rule_id) == (6.5, "00000000-0000-4000-8000-000000000001")
    assert found.description == "/usr/bin/nmap was run by /bin/bash."
    assert found.key == ("/usr/bin/nmap",)
    assert found.context == {"toolName": "/usr/bin/nmap", "flags": ["33"]}
    assert found.notes == ["started with nmap -sS\\x1b[0m"]
    assert found.triage == "Look at it."
    assert found.wall.isoformat() == "2023-11-14T22:30:00.002000+00:00"
    assert found.process == {
        "name": "nmap",
        "executablePath": "/usr/bin/nmap",
        "executableSha256": "ab" * 32,
        "namespacePid": 3,
        "pwd": "/tmp",
        "pid": 7,
        "startTime": "2023-11-14T22:21:40.000Z",
        "uuid": found.process["uuid"],
        "parentUuid": found.lineage[0]["uuid"],
        "user": "33",
        "userId": 33,
        "euid": 0,
        "arguments": ["nmap", "-sS\\x1b[0m"],
    }
    assert [(p["name"], p["pid"], p["executablePath"]) for p in found.lineage] == [("bash", 6, "/bin/bash")]
    assert found.container is not None
    assert found.container.runtime == "docker"
    assert found.container.cgroup_path == CONTAINER_PATH
    assert not found.host_process
    assert found.event["file_bits"] == ["OVERLAY", "UPPER"]
    assert found.event["argv"] == ["nmap", "-sS\\x1b[0m"]
    assert outcome.by_type == {"cgroup": 2, "exec": 2, "file_hash": 1}
    assert (outcome.event_count, outcome.candidates, outcome.errors) == (5, 1, [])


def test_one_faulty_unit_does_not_stop_the_others() -> None:
    selector = Selector("exec", literals=(AnyLiteral(("path",), frozenset({b"/nmap\0"})),))
    faulty = Unit((selector,), ValueError("bad \x1b[2J thing"), id="faulty")
    engine = Engine(rules(), detectors=(faulty, Unit((selector,))))
    outcome = process(engine, *[{"event": "exec", "path": "/x/nmap", "argv": ["x"], "pid": n} for n in (5, 6)])
    assert sorted({d.rule_id for d in outcome.detections}) == ["00000000-0000-4000-8000-000000000001", "unit"]
    (error,) = outcome.errors
    assert (error.unit, error.event_type, error.count) == ("faulty", "exec", 2)
    assert error.message == "ValueError: bad \\x1b[2J thing"


def test_replay_fills_history_and_decides_nothing() -> None:
    engine = Engine(rules())
    records, _ = encode_events([{"event": "exec", "path": "/usr/bin/nmap", "argv": ["x"], "pid": 6}])
    assert engine.process(make_header(), records, replay=True).detections == []
    outcome = process(engine, {"event": "exec", "path": "/opt/nmap", "argv": ["x"], "pid": 7, "ppid": 6})
    assert [d.lineage[0]["executablePath"] for d in outcome.detections] == ["/usr/bin/nmap"]


def test_repeats_of_one_thing_in_a_batch_are_counted() -> None:
    engine = Engine(rules(), settings=EngineSettings(repeats_after=3))
    events = [{"event": "exec", "path": "/x/nmap", "argv": ["x"], "pid": 5}] * 10
    outcome = process(engine, *events, {"event": "exec", "path": "/y/nmap", "argv": ["x"], "pid": 5})
    assert [(d.key, d.repeats) for d in outcome.detections] == [
        (("/x/nmap",), 0),
        (("/x/nmap",), 0),
        (("/x/nmap",), 7),
        (("/y/nmap",), 0),
    ]


def test_a_new_boot_begins_a_new_history() -> None:
    engine = Engine(rules())
    process(engine, {"event": "exec", "path": "/bin/old", "argv": ["x"], "pid": 6})
    outcome = process(
        engine, {"event": "exec", "path": "/x/nmap", "argv": ["x"], "pid": 7, "ppid": 6}, boot_id=b"\1" * 16
    )
    assert outcome.detections[0].lineage == []


def test_nodes_do_not_see_each_other() -> None:
    engine = Engine(rules())
    process(engine, {"event": "exec", "path": "/bin/old", "argv": ["x"], "pid": 6}, node="a")
    outcome = process(engine, {"event": "exec", "path": "/x/nmap", "argv": ["x"], "pid": 7, "ppid": 6}, node="b")
    assert outcome.detections[0].lineage == []
    assert sorted(engine.describe()) == ["a", "b"]
    engine.forget("a")
    assert sorted(engine.describe()) == ["b"]


def test_a_malformed_batch_changes_nothing() -> None:
    engine = Engine(rules())
    records, _ = encode_events([{"event": "exec", "path": "/usr/bin/nmap", "argv": ["x"], "pid": 6}])
    with pytest.raises(BatchError):
        engine.process(make_header(), records + b"\xff" * 80)
    assert engine.describe() == {}


def test_frames_are_taken_whole() -> None:
    records, _ = encode_events([{"event": "exec", "path": "/usr/bin/nmap", "argv": ["x"], "pid": 6}])
    outcome = Engine(rules()).process_frame(encode_batch(make_header(count=3), records))
    assert len(outcome.detections) == 1


def test_connections_to_listed_addresses_carry_the_action() -> None:
    unit = Unit((Selector("connect", threat="ip"),))
    engine = Engine(None, ThreatLists.of(["203.0.113.0/24"]), detectors=(unit,))
    common = {"event": "connect", "family": 2, "sock_type": 1, "rport": 443}
    outcome = process(
        engine,
        {**common, "raddr": "198.51.100.1"},
        {**common, "raddr": "203.0.113.9", "result": -1, "laddr": "10.0.0.5"},
    )
    (found,) = outcome.detections
    assert found.action == {
        "actionType": "NETWORK_CONNECTION",
        "networkConnectionAction": {
            "blocked": True,
            "connectionDirection": "OUTBOUND",
            "protocol": "TCP",
            "localPortDetails": {"port": 0, "portName": "Unknown"},
            "localIpDetails": {"ipAddressV4": "10.0.0.5"},
            "remoteIpDetails": {"ipAddressV4": "203.0.113.9"},
            "remotePortDetails": {"port": 443, "portName": "Unknown"},
        },
    }


def test_selectors_combine_masks_literals_and_threats() -> None:
    literal = AnyLiteral(("path",), frozenset({b"docker.sock\0"}))
    selectors = (
        Selector("connect", (Mask("family", "eq", 1), Mask("uid", "ge", 1000)), (literal,)),
        Selector("connect", (Mask("rport", "in_", (22, 2222)),), threat="ip"),
        Selector("connect", (Mask("rport", "gt", 60000), Mask("raddr", "net", ("198.51.100.0/24",)))),
    )
    engine = Engine(None, ThreatLists.of(["203.0.113.9"]), detectors=(Unit(selectors),))
    events = [
        {"event": "connect", "family": 1, "path": "/run/docker.sock", "uid": 1000, "pid": 1},
        {"event": "connect", "family": 1, "path": "/run/docker.sock", "uid": 999, "pid": 2},
        {"event": "connect", "family": 1, "path": "/run/docker.sock2", "uid": 1000, "pid": 3},
        {"event": "connect", "family": 2, "raddr": "203.0.113.9", "rport": 22, "pid": 4},
        {"event": "connect", "family": 2, "raddr": "203.0.113.9", "rport": 23, "pid": 5},
        {"event": "connect", "family": 2, "raddr": "203.0.113.8", "rport": 22, "pid": 6},
        {"event": "connect", "family": 2, "raddr": "198.51.100.200", "rport": 60001, "pid": 7},
        {"event": "connect", "family": 10, "raddr": "::ffff:198.51.100.200", "rport": 60001, "pid": 8},
        {"event": "connect", "family": 2, "raddr": "198.51.101.200", "rport": 60001, "pid": 9},
    ]
    assert [d.process["pid"] for d in process(engine, *events).detections] == [1, 4, 7, 8]


def test_the_histories_of_all_nodes_stay_within_their_bound() -> None:
    settings = EngineSettings(history=HistorySettings(event_bytes=1 << 20), all_nodes_bytes=2 << 20)
    engine = Engine(None, settings=settings)
    raw = b"".join(encode_event("open", time=n, pid=n, path="/tmp/" + "x" * 50, oflags=1) for n in range(1, 500))
    for n in range(640):
        engine.process(make_header(node=f"node-{n % 8}"), raw)
    assert sum(node["bytes"] for node in engine.describe().values()) <= 2 << 20
    assert all(node["rows"]["open"] >= 499 for node in engine.describe().values())
