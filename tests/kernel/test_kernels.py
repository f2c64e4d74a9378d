"""The same programs on Debian's kernels from 5.10 to the newest: what loads, and what is reported."""

from __future__ import annotations

import pytest
from acts import ACTS
from conftest import Report
from expectations import expected_on, missing_on


def test_the_programs_load(report: Report) -> None:
    assert "message" not in report.loaded, report.loaded["message"]
    assert report.loaded["uid"] == (65534 if report.user == "agent" else 0)


def test_no_hook_but_those_the_kernel_lacks_is_missing(report: Report) -> None:
    hooks = report.loaded["hooks"]
    assert [hook for hook in hooks if hook[2] == "failed"] == []
    assert {hook for _, hook, state, _ in hooks if state == "missing"} == missing_on(report.kernel.numbers)


@pytest.mark.parametrize("act", ACTS)
def test_what_is_done_is_reported(report: Report, act: str) -> None:
    done = report.acts[act]
    assert "error" not in done, done["error"]
    pids = {record["pid"] for record in done["expected"]}
    version = report.kernel.numbers
    base = report.user == "base" or version < (5, 17)
    expected = expected_on(version, act, done["expected"], base=base)
    found = [r for r in report.records if r["pid"] in pids and r["event"] in ACTS[act].events]
    assert [r["event"] for r in found] == [e["event"] for e in expected]
    for record, values in zip(found, expected, strict=True):
        assert {key: record[key] for key in values} == values


def test_every_event_that_was_emitted_was_received(report: Report) -> None:
    assert report.counters["emitted"] == len(report.records)
    assert report.counters["dropped"] == 0


def test_what_is_pinned_is_found_again(report: Report) -> None:
    assert report.again["reused"] is True
    assert report.again["counters"]["emitted"] >= report.counters["emitted"]


def test_the_kernel_does_not_complain(report: Report) -> None:
    complaints = ("WARNING:", "BUG:", "Oops:", "Call Trace:", "rcu: INFO", "soft lockup")
    assert [line for line in report.console.splitlines() if any(word in line for word in complaints)] == []
