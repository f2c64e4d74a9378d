"""Whatever bytes and numbers a process chooses, no detector or rule fails, and nothing unsafe reaches a finding."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_detector.detectors import ALL_DETECTORS
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import Ruleset, load_rules, rules_directory
from vedette_detector.sigma.rule_tests import encode_events, make_header
from vedette_detector.threat_lists import ThreatLists
from vedette_events import schema

HOSTILE = (b"\x1b]0;x\x07", b"\n\r\t", b"\xff\xfe", "\u202e".encode(), b"'\"<script>", b"{Image}", b"%n", b"../../")
WORDS: tuple[bytes, ...] = (
    b"/bin/sh",
    b"/proc/1/mem",
    b"/proc/self/exe",
    b"runc",
    b"memfd:x",
    b"/tmp/x",
    b"release_agent",
    b"/dev/sda",
)
WORDS += (b"docker.sock", b"xmrig", b"/dev/shm/x", b"stratum+tcp://", b"-c", b"-i", b"bash", b"ext4", b"source")
SIZES = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "s32": 31, "s64": 63}

pieces = st.one_of(st.sampled_from(HOSTILE + WORDS), st.binary(max_size=20))
text = st.lists(pieces, max_size=4).map(b"".join)


def number(kind: str) -> st.SearchStrategy[int]:
    greatest = (1 << SIZES[kind]) - 1
    small = st.integers(0, min(12, greatest))
    return st.one_of(small, st.sampled_from([1 << n for n in range(SIZES[kind])]), st.integers(0, greatest))


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from([t for t in schema.EVENT_TYPES if t.name not in ("cgroup", "file_hash")]))
    values: dict[str, Any] = {
        "event": kind.name,
        "pid": draw(st.sampled_from([1, 2, 3])),
        "container": draw(st.booleans()),
    }
    values["ppid"] = draw(st.sampled_from([0, 1, 2, 3]))
    values["result"] = draw(st.sampled_from([0, 0, 3, -1, -26, -115]))
    values["comm"] = draw(text)[:15]
    for field in (
        draw(st.lists(st.sampled_from(kind.fields), max_size=12, unique_by=lambda f: f.name)) if kind.fields else ()
    ):
        if field.name in ("child_pid", "target_pid"):
            values[field.name] = draw(st.sampled_from([1, 2, 3]))
        elif field.kind == "addr":
            values[field.name] = draw(st.binary(min_size=16, max_size=16))
        elif field.kind in SIZES:
            values[field.name] = draw(number(field.kind))
    for tail in kind.tails:
        if tail.kind == "args":
            values[tail.name] = [a.replace(b"\0", b"") for a in draw(st.lists(text, max_size=5))]
        else:
            values[tail.name] = draw(text)[: tail.limit]
    return values


POSITIVE = [test for detector in ALL_DETECTORS for test in detector.tests if test["match"]]
TAILS = ("path", "filename", "cwd", "dir", "name", "source", "target", "fstype", "params", "new_path", "comm")


@st.composite
def disguised(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What a detector finds, with hostile bytes in names, paths and arguments, and a number changed here and there."""
    out = []
    for given_event in draw(st.sampled_from(POSITIVE))["events"]:
        event = dict(given_event)
        if event["event"] == "exec":
            event["argv"] = [*event.get("argv", ()), draw(text).replace(b"\0", b"")]
            event["cwd"] = draw(text)
        event["comm"] = draw(text)[:15]
        for tail in TAILS:
            value = event.get(tail)
            if isinstance(value, str) and draw(st.integers(0, 3)) == 0:
                event[tail] = draw(pieces)[:8] + value.encode()
            elif isinstance(value, str) and draw(st.integers(0, 3)) == 0:
                event[tail] = value.encode() + b"/" + draw(pieces)[:8]
        if draw(st.integers(0, 5)) == 0:
            event["result"] = draw(st.sampled_from([0, 3, -1, -26, -115]))
        out.append(event)
    return out


@cache
def rules() -> Ruleset:
    return load_rules([rules_directory()])


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for item in value.items() for part in item for t in texts(part)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in texts(item)]
    return [value] if isinstance(value, str) else []


def shown(detection: Detection) -> dict[str, Any]:
    return {
        "title": detection.title,
        "description": detection.description,
        "key": list(detection.key),
        "process": detection.process,
        "lineage": detection.lineage,
        "context": detection.context,
        "notes": detection.notes,
        "event": detection.event,
        "related": detection.related_events,
        "evidence": detection.evidence,
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.one_of(st.lists(events(), min_size=1, max_size=12), disguised()))
def test_no_detector_fails_and_everything_shown_is_safe(given_events: list[dict[str, Any]]) -> None:
    engine = Engine(
        rules(), ThreatLists.of(["203.0.113.77", "vedette.example"]), detectors=[type(d)() for d in ALL_DETECTORS]
    )
    records, _ = encode_events(given_events)

    outcome = engine.process(make_header(), records)

    assert outcome.errors == []
    for detection in outcome.detections:
        json.dumps(shown(detection))
        for value in texts(shown(detection)):
            assert value.isprintable(), (detection.rule_id, value)
