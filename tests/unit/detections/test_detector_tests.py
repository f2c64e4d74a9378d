"""Every detector's own tests, through the real engine: encoded records, prefilter, history, confirm."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from vedette_detector.detectors import ALL_DETECTORS, Detector
from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import check_test, make_test
from vedette_detector.sigma.rule_tests import encode_events, make_header, run_unit_tests
from vedette_detector.threat_lists import ThreatLists
from vedette_events.encode import decode_event

CASES = [(detector, test) for detector in ALL_DETECTORS for test in detector.tests]


@pytest.mark.parametrize(("detector", "test"), CASES, ids=[f"{d.id}: {t['name']}" for d, t in CASES])
def test_detector_decides_as_its_own_test_says(detector: Detector, test: dict[str, Any]) -> None:
    assert check_test(test) is None
    assert [str(failure) for failure in run_unit_tests(detector, [make_test(test)], detector.id)] == []


@pytest.mark.parametrize("detector", ALL_DETECTORS, ids=lambda d: d.id)
def test_detector_is_fully_described(detector: Detector) -> None:
    matches = {test["match"] for test in detector.tests}
    names = [test["name"] for test in detector.tests]

    assert matches == {True, False}
    assert len(names) == len(set(names))
    assert re.fullmatch(r"[a-z0-9-]+", detector.id)
    assert detector.title
    assert detector.description
    assert detector.triage
    assert detector.falsepositives
    assert any(tag.startswith("attack.t1") for tag in detector.tags)
    assert 1.0 <= detector.severity <= 10.0
    assert all(re.fullmatch(r"[A-Z]\w+:Runtime/[\w&.!]+", kind) for kind in detector.finding_types)


def test_detector_ids_are_unique() -> None:
    ids = [detector.id for detector in ALL_DETECTORS]

    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("detector", ALL_DETECTORS, ids=lambda d: d.id)
def test_detector_travels_to_a_worker_process_without_its_state(detector: Detector) -> None:
    copy = pickle.loads(pickle.dumps(detector))

    assert type(copy) is type(detector)
    assert copy is not detector
    assert len(copy.selectors) == len(detector.selectors)


POSITIVE = [(detector, test) for detector, test in CASES if test["match"]]


@pytest.mark.parametrize(("detector", "test"), POSITIVE, ids=[f"{d.id}: {t['name']}" for d, t in POSITIVE])
def test_detector_decides_the_same_when_each_event_comes_alone(detector: Detector, test: dict[str, Any]) -> None:
    engine = Engine(None, ThreatLists.of(test.get("threats", ())), detectors=[type(detector)()])
    times = []
    found = []
    for number in range(1, len(test["events"]) + 1):
        # Everything up to here is encoded, so that defaults are the same; only the newest event is sent on.
        records, time = encode_events(test["events"][:number])
        times.append(time)
        outcome = engine.process(make_header(sequence=number), since(records, time, first=number == 1))
        assert outcome.errors == []
        found += outcome.detections

    assert [d.time_ns for d in found if d.time_ns == times[-1]] == [times[-1]]


def since(records: bytes, time: int, *, first: bool) -> bytes:
    """The records of one time; with ``first`` also those that name cgroups."""
    out = b""
    at = 0
    while at < len(records):
        size = int.from_bytes(records[at : at + 4], "little")
        name, values = decode_event(records[at : at + size])
        if values["time"] == time or (name == "cgroup" and (first or values["cgroup"] >= 5000)):
            out += records[at : at + size]
        at += size
    return out
