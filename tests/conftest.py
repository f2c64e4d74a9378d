"""What holds for every test: in continuous integration nothing may be skipped silently."""

from __future__ import annotations

import os

import pytest

UNAVOIDABLE = ("kernel:", "place:")
"""A skip whose reason begins so is allowed everywhere: this kernel lacks what the test is about, or the tree lies where
it cannot be done (below /root, where an ordinary user reads nothing)."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """Turn a skip into a failure when CI is set, unless the kernel itself lacks the thing tested."""
    report: pytest.TestReport = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(UNAVOIDABLE):
            report.outcome = "failed"
            report.longrepr = f"skipped although CI is set, where every test must run: {reason}"
    return report
