"""Runs the tests that rules and detectors carry, through the real engine.

The events of a test are encoded to real records and go through split, history, prefilter and confirm in one batch,
so that a test also shows that the prefilter lets the event through. Events are a millisecond apart unless they say
``time``. A process's ``start`` follows from its pid unless given, so that events with one pid belong together;
``parent_start`` follows from ``ppid``. ``container: true`` puts an event into a container.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vedette_detector.engine.context import EngineSettings
from vedette_detector.engine.engine import Engine, Outcome, Unit
from vedette_detector.sigma.loader import Rule, Ruleset, RuleTest
from vedette_detector.threat_lists import ThreatLists
from vedette_events import schema
from vedette_events.encode import encode_event
from vedette_events.framing import BatchHeader

CONTAINER_CGROUP = 4242
HOST_CGROUP = 1
_CONTAINER_ID = "c0ffee" * 10 + "cafe"
CONTAINER_PATH = f"/system.slice/docker-{_CONTAINER_ID}.scope"
_FIRST_NS = 1_000_000_000_000
_STEP_NS = 1_000_000
_DEFAULT_PID = 1000


@dataclass(frozen=True)
class TestFailure:
    """A test that did not come out as its file says."""

    __test__ = False  # not a test of pytest's

    file: str
    line: int
    rule: str
    test: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.test}: {self.message}"


@dataclass(frozen=True)
class _One:
    rules: Sequence[Unit]


def run_rule_tests(ruleset: Ruleset) -> list[TestFailure]:
    """Run every test of every rule."""
    out: list[TestFailure] = []
    for rule in ruleset.rules:
        out += run_unit_tests(rule, rule.tests, rule.file)
    return out


def run_unit_tests(
    unit: Unit, tests: Iterable[RuleTest], file: str, settings: EngineSettings | None = None
) -> list[TestFailure]:
    """Run the tests of one rule or detector, alone in an engine."""
    out = []
    for test in tests:
        title = unit.title if isinstance(unit, Rule) else unit.id
        try:
            outcome, time = run_test(unit, test, settings)
        except (ValueError, TypeError, KeyError) as e:
            out.append(TestFailure(file, test.line, title, test.name, f"the events cannot be encoded: {e}"))
            continue
        if outcome.errors:
            out.append(TestFailure(file, test.line, title, test.name, f"failed: {outcome.errors[0].message}"))
            continue
        matched = any(detection.time_ns == time for detection in outcome.detections)
        if matched != test.match:
            message = "should match, but does not" if test.match else "should not match, but does"
            out.append(TestFailure(file, test.line, title, test.name, message))
    return out


def run_test(unit: Unit, test: RuleTest, settings: EngineSettings | None = None) -> tuple[Outcome, int]:
    """Run one test.

    Returns:
        What the engine found, and the time of the event that is judged.
    """
    threats = ThreatLists.of(test.threats)
    records, time = encode_events(test.events)
    engine = Engine(_One([unit]), threats, settings)
    return engine.process(make_header(), records), time


def encode_events(events: Iterable[dict[str, Any]]) -> tuple[bytes, int]:
    """Encode test events to records, with defaults that make them belong together.

    Returns:
        The records, and the time of the last event in ns since boot.
    """
    records = [encode_event("cgroup", time=1, cgroup=CONTAINER_CGROUP, path=CONTAINER_PATH)]
    records.append(encode_event("cgroup", time=1, cgroup=HOST_CGROUP, path="/system.slice/test.service"))
    time = _FIRST_NS
    for number, given in enumerate(events):
        values = dict(given)
        name = values.pop("event")
        path = values.pop("cgroup_path", None)
        if values.pop("container", False):
            values.setdefault("cgroup", CONTAINER_CGROUP)
            if name == "exec":
                values.setdefault("pid_ns", 4026532200)
        values.setdefault("cgroup", HOST_CGROUP)
        if path is not None:
            values["cgroup"] = 5000 + number
            records.append(encode_event("cgroup", time=1, cgroup=values["cgroup"], path=path))
        values.setdefault("time", time)
        values.setdefault("pid", _DEFAULT_PID)
        values.setdefault("tid", values["pid"])
        values.setdefault("start", _start(int(values["pid"])))
        fields = {f.name for f in schema.BY_NAME[name].fields}
        if "parent_start" in fields and values.get("ppid"):
            values.setdefault("parent_start", _start(int(values["ppid"])))
        if "child_start" in fields and values.get("child_pid"):
            values.setdefault("child_start", _start(int(values["child_pid"])))
        if "target_start" in fields and values.get("target_pid"):
            values.setdefault("target_start", _start(int(values["target_pid"])))
        if "pid_ns" in fields:
            values.setdefault("pid_ns", 0xEFFFFFFC)
        records.append(encode_event(name, **values))
        time = int(values["time"]) + _STEP_NS
    return b"".join(records), time - _STEP_NS


def _start(pid: int) -> int:
    return _FIRST_NS // 2 + pid * 1000


def make_header(node: str = "test-node", sequence: int = 1, count: int = 0) -> BatchHeader:
    """A header that says no more than the engine needs."""
    return BatchHeader(
        node=node, boot_id=bytes(16), session=1, sequence=sequence, count=count, wall_offset_ns=1_700_000_000 * 10**9
    )
