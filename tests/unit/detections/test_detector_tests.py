"""Every detector's own tests, through the real engine: encoded records, prefilter, history, confirm."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from vedette_detector.detectors import ALL_DETECTORS, Detector
from vedette_detector.sigma.loader import check_test, make_test
from vedette_detector.sigma.rule_tests import run_unit_tests

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
